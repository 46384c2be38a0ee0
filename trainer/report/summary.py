"""The results of a run in a few lines, for the terminal."""

from __future__ import annotations

from pathlib import Path

from bellwether.trainer.checkpoint_interval import suggest
from bellwether.trainer.metrics import KINDS
from bellwether.trainer.progress import duration
from bellwether.trainer.report.facts import SMOOTHED_SHORT, Facts, about, count, number, rate, share
from bellwether.trainer.scores import NAMES


def summary(run: Path) -> str:
    """A plain-text table: losses, held-out result, length, throughput, time, and the paths of the results."""
    facts = Facts.load(run)
    h, losses = facts.history, facts.losses
    rows: list[tuple[str, str]] = []
    if losses:
        guess = "   guessing: ln({:,}) = {:.4f}".format(*facts.expectation) if facts.expectation else ""
        rows += [("first loss", number(losses[0]) + guess), ("last loss", number(losses[-1]))]
    if facts.nonfinite:
        rows.append(("not finite", f"the loss at {count(facts.nonfinite, 'logged step')}"))
    if h.eval:
        held = h.eval[-1]
        rows.append(("held-out loss", number(held.get("loss"))))
        if facts.unigram is not None:
            rows.append(("unigram loss", number(facts.unigram) + _learnt(held.get("loss"), facts.unigram)))
        accuracies = [("held-out accuracy", "accuracy"), *((f"... {kind}", f"accuracy_{kind}") for kind in KINDS)]
        rows += [(label, share(held[key])) for label, key in accuracies if held.get(key) is not None]
        rows += [(f"held-out {key.replace('_', ' ')}", number(held[key])) for key in NAMES if held.get(key) is not None]
    score, value, step = facts.best_score
    if score is not None and step is not None:
        rows.append((f"best {score.replace('_', ' ')}", f"{number(value)}   (step {step:,})"))
    if facts.placement is not None:
        rows.append((f"MLPerf {facts.placement.result.benchmark.name}", str(facts.placement)))
    if facts.noise is not None:
        known = f"about {about(facts.noise.scale)} samples over the last {facts.noise.horizon:,} steps"
        if facts.noise.recent is not None:
            known += f", {about(facts.noise.recent)} over the last {SMOOTHED_SHORT * facts.noise.every:,}"
        if facts.noise.spikes:
            known += f"; {count(facts.noise.spikes, 'spike')} left out"
        early = f"too early to tell: {facts.noise.early}"
        rows.append(("gradient noise", early if facts.noise.early else known))
    rows += [(label, f"{facts.last.get(key, 0):,}") for label, key in (("steps", "step"), ("samples", "samples"))]
    speed, tokens = facts.median("samples_per_s"), facts.median("tokens_per_s")
    if speed is not None:
        rows.append(("throughput", f"{rate(speed)} samples/s" + (f"   ({rate(tokens)} tokens/s)" if tokens else "")))
    restarts = f"   ({len(h.start)} launches)" if len(h.start) > 1 else ""
    rows.append(("wall time", duration(h.seconds) + restarts))
    if facts.goodput.total:
        rows.append(("time went to", str(facts.goodput)))
    if (interval := suggest(h, facts.goodput)) is not None:
        rows.append(("suggestion", f"checkpoint {interval}"))
    places = {
        "report": "report.html",
        "export": "export",
        "checkpoints": "checkpoints",
        "TensorBoard": "logs/tensorboard",
    }
    rows += [(label, str(run / place)) for label, place in places.items() if (run / place).exists()]
    body = aligned(rows)
    head = f"{facts.name}: {h.state}"
    rule = "-" * max(len(line) for line in [head, *body])
    return "\n".join([head, rule, *body])


def _learnt(loss: object, unigram: float) -> str:
    if not isinstance(loss, int | float) or loss < unigram:
        return "   of token frequencies alone"
    return "   of token frequencies alone: nothing more has been learnt"


def aligned(rows: list[tuple[str, str]]) -> list[str]:
    """Lines of text from (label, text), with the texts below each other."""
    width = max(len(label) for label, _ in rows)
    return [f"  {label:<{width}}  {text}" for label, text in rows]
