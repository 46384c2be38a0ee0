"""The report's numbers: headline tiles and tables, as HTML. Everything that comes from a run is escaped."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import Any

from bellwether.trainer.metrics import HELD, Line
from bellwether.trainer.progress import duration
from bellwether.trainer.report.facts import ABSENT, Facts, about, count, finite, number, numbers, rate, share
from bellwether.trainer.report.markup import folded, table
from bellwether.trainer.report.names import shorten


def headlines(facts: Facts) -> list[tuple[str, str, str, str]]:
    """(label, value, unit, the line below)"""
    h = facts.history
    held: Line = h.eval[-1] if h.eval else {}
    newest: Line = h.train[-1] if h.train else {}
    best = min(numbers(h.eval, "loss"), default=None)
    memory = max(numbers(h.train, "memory_gib"), default=None)
    batch, batch_note = _now([whole(batch) for batch in facts.over_phases("batch", "global")], facts)
    rate_now, rate_note = _now([number(lr, "g") for lr in facts.over_phases("optimizer", "lr")], facts)
    epoch = newest.get("epoch")
    seen = f"{epoch:.3g} epochs" if finite(epoch) else ""
    if facts.boundaries:
        seen = count(len(facts.boundaries) + 1, "phase")
    return [
        ("Training loss", number(newest.get("loss")), "",
         f"from {number(facts.losses[0])}" if facts.losses else ""),
        ("Held-out loss", number(held.get("loss")), "", f"best {number(best)}" if best is not None else ""),
        ("Held-out accuracy", share(held.get("accuracy")), "", counted(held.get("examples"), "example")),
        ("Samples", whole(facts.last.get("samples")), "", seen),
        ("Steps", whole(facts.last.get("step")), "", count(len(h.restarts), "restart") if h.restarts else ""),
        ("Global batch", batch, "", batch_note or "samples a step"),
        *_critical(facts),
        ("Optimizer", str(facts.setting("optimizer", "name") or ABSENT).upper(), "",
         f"lr {rate_now} {rate_note}".strip() if rate_now != ABSENT else ""),
        ("Throughput", rate(facts.throughput), "/s" if facts.throughput else "",
         f"{rate(facts.tokens_per_s)} tokens/s" if facts.tokens_per_s else "samples, median"),
        ("Wall time", duration(h.seconds) if h.start else ABSENT, "",
         f"{len(h.start)} launches" if len(h.start) > 1 else ""),
        ("Peak memory", number(memory, ".3g"), "GiB" if memory is not None else "",
         "a process" if memory is not None else ""),
    ]  # fmt: skip


def _critical(facts: Facts) -> list[tuple[str, str, str, str]]:
    noise = facts.noise
    if noise is None:
        return []
    if noise.early:
        return [("Critical batch", ABSENT, "", f"too early: {noise.early}")]
    rough, _, error = about(noise.scale, noise.error).partition(" ± ")
    return [("Critical batch", rough, "", f"{f'± {error}, ' if error else ''}from noise")]


def _now(values: list[str], facts: Facts) -> tuple[str, str]:
    """Of one value a phase the one that counts now, and a word on the others."""
    if not values:
        return ABSENT, ""
    at = min(len(facts.boundaries), len(values) - 1)
    if len(set(values)) == 1:
        return values[0], ""
    return values[at], f"after {values[at - 1]}" if at else f"then {values[1]}"


def plan(facts: Facts) -> str:
    """What was planned: a row a label, a column a phase; one cell where all phases agree."""
    if not facts.plan:
        return ""
    labels = list(dict.fromkeys(label for rows in facts.plan for label, _ in rows))
    phases = [dict(rows) for rows in facts.plan]
    head = "".join(f"<th>phase {i + 1}</th>" for i in range(len(phases)))
    rows = []
    for label in labels:
        values = [phase.get(label, "–") for phase in phases]
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        if len(set(values)) == 1:
            cells = f'<td colspan="{len(values)}">{escape(values[0])}</td>'
        rows.append(f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>')
    top = f"<thead><tr><th></th>{head}</tr></thead>" if len(phases) > 1 else ""
    body = f'<table class="plan">{top}<tbody>{"".join(rows)}</tbody></table>'
    return f'<h2>Plan</h2>\n<div class="scroll">{body}</div>'


def evaluations(facts: Facts) -> str:
    lines = facts.history.eval
    more = [key for key in HELD[2:] if any(line.get(key) is not None for line in lines)]
    rows = [
        (
            whole(line.get("step")),
            whole(line.get("samples")),
            number(line.get("loss")),
            share(line.get("accuracy")),
            *((share if key.startswith("accuracy") else number)(line.get(key)) for key in more),
            whole(line.get("examples")),
        )
        for line in lines
    ]
    names = [key.replace("_", ", ") for key in more]
    head = [(label, "n") for label in ("step", "samples", "loss", "accuracy", *names, "examples")]
    return f"<h2>Evaluations</h2>\n{table(head, rows)}" if rows else ""


def checkpoints(facts: Facts) -> str:
    rows = []
    for line in facts.history.checkpoint:
        path = str(line.get("path", ""))
        rows.append(
            (
                whole(line.get("step")),
                whole(line.get("samples")),
                number(line.get("seconds"), ".2f"),
                _below(path, facts.run),
                "" if Path(path).exists() or (facts.run / path).exists() else "not kept",
            )
        )
    head = [("step", "n"), ("samples", "n"), ("seconds to save", "n"), ("path", "path"), ("", "note")]
    return f"<h2>Checkpoints</h2>\n{table(head, rows)}" if rows else ""


def layers(facts: Facts) -> str:
    """Every parameter's first and last trust ratio, folded away: the picture above has the course."""
    lines = facts.history.layers
    if not lines:
        return ""
    first, last = lines[0]["trust_ratio"], lines[-1]["trust_ratio"]
    rows = [
        (name.group, name.short, number(first.get(name.full), ".4g"), number(last.get(name.full), ".4g"))
        for name in shorten(last)
    ]
    head = (("block", ""), ("parameter", ""), ("first", "n"), ("last", "n"))
    note = f"{count(len(rows), 'parameter')}, first and last logged"
    return folded("Trust ratio by parameter", note, table(head, rows))


def whole(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ABSENT


def counted(value: Any, noun: str) -> str:
    return count(value, noun) if isinstance(value, int) else ""


def _below(path: str, run: Path) -> str:
    """The path as seen from the run directory, where it is in it."""
    try:
        return os.fspath(Path(path).resolve().relative_to(run.resolve()))
    except ValueError:
        return path
