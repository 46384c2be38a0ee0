"""The numbers of a run's report: headline tiles and tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bellwether.trainer.metrics import HELD, Line
from bellwether.trainer.progress import duration
from bellwether.trainer.report.facts import ABSENT, Facts, about, count, finite, number, numbers, rate, share, whole
from bellwether.trainer.report.html import Table
from bellwether.trainer.report.names import shorten


def headlines(facts: Facts) -> list[tuple[str, str, str, str]]:
    """(label, value, unit, the line below)"""
    h = facts.history
    held: Line = h.eval[-1] if h.eval else {}
    newest: Line = h.train[-1] if h.train else {}
    best = min(numbers(h.eval, "loss"), default=None)
    memory = max(numbers(h.train, "memory_gib"), default=None)
    batch, batch_note = _now([whole(batch) for batch in facts.over_phases("batch", "global")], facts)
    lr, lr_note = _now([number(lr, "g") for lr in facts.over_phases("optimizer", "lr")], facts)
    epochs = f"{newest['epoch']:.3g} epochs" if finite(newest.get("epoch")) else ""
    phases = count(len(facts.boundaries) + 1, "phase") if facts.boundaries else epochs
    examples = held.get("examples")
    return [
        ("Training loss", number(newest.get("loss")), "", f"from {number(facts.losses[0])}" if facts.losses else ""),
        ("Held-out loss", number(held.get("loss")), "", f"best {number(best)}" if best is not None else ""),
        ("Held-out accuracy", share(held.get("accuracy")), "", "" if examples is None else count(examples, "example")),
        ("Samples", whole(facts.last.get("samples")), "", phases),
        ("Steps", whole(facts.last.get("step")), "", count(len(h.restarts), "restart") if h.restarts else ""),
        ("Global batch", batch, "", batch_note or "samples a step"),
        *_critical_batch(facts),
        ("Optimizer", str(facts.setting("optimizer", "name") or ABSENT).upper(), "",
         f"lr {lr} {lr_note}".strip() if lr != ABSENT else ""),
        ("Throughput", rate(facts.throughput), "/s" if facts.throughput else "",
         f"{rate(facts.tokens_per_s)} tokens/s" if facts.tokens_per_s else "samples, median"),
        ("Wall time", duration(h.seconds) if h.start else ABSENT, "",
         f"{len(h.start)} launches" if len(h.start) > 1 else ""),
        ("Peak memory", number(memory, ".3g"), "GiB" if memory is not None else "",
         "a process" if memory is not None else ""),
    ]  # fmt: skip


def _critical_batch(facts: Facts) -> list[tuple[str, str, str, str]]:
    noise = facts.noise
    if noise is None:
        return []
    if noise.early:
        return [("Critical batch", ABSENT, "", f"too early: {noise.early}")]
    size, _, error = about(noise.scale, noise.error).partition(" ± ")
    return [("Critical batch", size, "", f"{f'± {error}, ' if error else ''}from noise")]


def _now(values: list[str], facts: Facts) -> tuple[str, str]:
    """The value of the current phase, and a note on the phase before it or after it."""
    if not values:
        return ABSENT, ""
    at = min(len(facts.boundaries), len(values) - 1)
    if len(set(values)) == 1:
        return values[0], ""
    return values[at], f"after {values[at - 1]}" if at else f"then {values[1]}"


def plan(facts: Facts) -> list[tuple[str, list[str]]]:
    """The rows of the run's plan: (label, its value in each phase)."""
    phases = [dict(rows) for rows in facts.plan]
    labels = dict.fromkeys(label for rows in facts.plan for label, _ in rows)
    return [(label, [phase.get(label, ABSENT) for phase in phases]) for label in labels]


def evaluations(facts: Facts) -> Table:
    lines = facts.history.eval
    keys = ["loss", "accuracy", *(key for key in HELD[2:] if any(line.get(key) is not None for line in lines))]
    rows = [
        (
            whole(line.get("step")),
            whole(line.get("samples")),
            *((share if key.startswith("accuracy") else number)(line.get(key)) for key in keys),
            whole(line.get("examples")),
        )
        for line in lines
    ]
    return _numeric(["step", "samples", *(key.replace("_", ", ") for key in keys), "examples"], rows)


def checkpoints(facts: Facts) -> Table:
    rows = []
    for line in facts.history.checkpoint:
        path = str(line.get("path", ""))
        kept = Path(path).exists() or (facts.run / path).exists()
        at = [whole(line.get(key)) for key in ("step", "samples")]
        rows.append((*at, number(line.get("seconds"), ".2f"), _relative(path, facts.run), "" if kept else "not kept"))
    return _numeric(["step", "samples", "seconds to save"], rows, [("path", "path"), ("", "note")])


def layers(facts: Facts) -> Table:
    """The first and the last trust ratio of every parameter."""
    lines = facts.history.layers
    first, last = (lines[0]["trust_ratio"], lines[-1]["trust_ratio"]) if lines else ({}, {})
    rows = [
        (name.group, name.short, number(first.get(name.full), ".4g"), number(last.get(name.full), ".4g"))
        for name in shorten(last)
    ]
    return Table([("block", ""), ("parameter", ""), ("first", "n"), ("last", "n")], rows)


def _numeric(labels: list[str], rows: Sequence[Sequence[str]], more: Sequence[tuple[str, str]] = ()) -> Table:
    return Table([*((label, "n") for label in labels), *more], rows)


def _relative(path: str, run: Path) -> str:
    """The path relative to the run directory if it is inside."""
    try:
        return os.fspath(Path(path).resolve().relative_to(run.resolve()))
    except ValueError:
        return path
