"""The results of a run in a few lines, for the terminal."""

from __future__ import annotations

from pathlib import Path

from bellwether.trainer.metrics import KINDS
from bellwether.trainer.progress import duration
from bellwether.trainer.report.facts import Facts, about, count, number, rate, share


def summary(run: Path) -> str:
    """A plain-text table: losses, held-out result, length, throughput, time, and the paths of the results."""
    facts = Facts.load(run)
    history, losses = facts.history, facts.losses
    rows: list[tuple[str, str]] = []
    if losses:
        guess = f"   guessing: ln({facts.expectation[0]:,}) = {facts.expectation[1]:.4f}" if facts.expectation else ""
        rows.append(("first loss", number(losses[0]) + guess))
        rows.append(("last loss", number(losses[-1])))
    if facts.nonfinite:
        rows.append(("not finite", f"the loss at {count(facts.nonfinite, 'logged step')}"))
    if history.eval:
        rows.append(("held-out loss", number(history.eval[-1].get("loss"))))
        if history.eval[-1].get("accuracy") is not None:
            rows.append(("held-out accuracy", share(history.eval[-1]["accuracy"])))
        rows += [
            (f"... {kind}", share(history.eval[-1][f"accuracy_{kind}"]))
            for kind in KINDS
            if f"accuracy_{kind}" in history.eval[-1]
        ]
    noise = facts.noise
    if noise is not None:
        known = f"about {about(noise.scale, noise.error)} samples, from gradient noise"
        early = f"too early to tell from gradient noise: {noise.early}"
        rows.append(("critical batch", early if noise.early else known))
    rows.append(("steps", f"{facts.last.get('step', 0):,}"))
    rows.append(("samples", f"{facts.last.get('samples', 0):,}"))
    if facts.throughput is not None:
        tokens = f"   ({rate(facts.tokens_per_s)} tokens/s)" if facts.tokens_per_s else ""
        rows.append(("throughput", f"{rate(facts.throughput)} samples/s{tokens}"))
    restarts = f"   ({count(len(history.start), 'launch')[:-1]}es)" if len(history.start) > 1 else ""
    rows.append(("wall time", duration(history.seconds) + restarts))
    places = (
        ("report", "report.html"),
        ("export", "export"),
        ("checkpoints", "checkpoints"),
        ("TensorBoard", "logs/tensorboard"),
    )
    rows += [(label, str(run / place)) for label, place in places if (run / place).exists()]
    width = max(len(label) for label, _ in rows)
    head = f"{facts.name}: {facts.history.state}"
    body = [f"  {label:<{width}}  {value}" for label, value in rows]
    rule = "-" * max(len(line) for line in [head, *body])
    return "\n".join([head, rule, *body])
