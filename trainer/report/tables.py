"""The numbers of a run's report: headline tiles and tables."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bellwether.trainer import scores
from bellwether.trainer.metrics import HELD, Line
from bellwether.trainer.progress import duration
from bellwether.trainer.report.facts import ABSENT, Facts, about, count, finite, number, numbers, rate, share, whole
from bellwether.trainer.report.html import Column, Table, Tile
from bellwether.trainer.report.names import shorten


def headlines(facts: Facts) -> list[Tile]:
    """The tiles at the top of the page."""
    h = facts.history
    held: Line = h.eval[-1] if h.eval else {}
    newest: Line = h.train[-1] if h.train else {}
    first, best = facts.losses[:1], min(numbers(h.eval, "loss"), default=None)
    speed, tokens = facts.median("samples_per_s"), facts.median("tokens_per_s")
    memory = max(numbers(h.train, "memory_gib"), default=None)
    batch, batch_note = _now(facts.batches, facts)
    lr, lr_note = _now([f"{lr:g}" for lr in facts.over_phases("optimizer", "lr")], facts)
    examples = count(held["examples"], "example") if "examples" in held else ""
    optimizer = facts.setting("optimizer", "name") or ABSENT
    launches = f"{len(h.start)} launches" if len(h.start) > 1 else ""
    epochs = f"{newest['epoch']:.3g} epochs" if finite(newest.get("epoch")) else ""
    phases = count(len(facts.boundaries) + 1, "phase") if facts.boundaries else epochs
    score, value, step = facts.best_score
    tile: Tile = ("Held-out accuracy", share(held.get("accuracy")), "", examples)
    if held.get("perplexity") is not None:
        tile = ("Held-out perplexity", number(held["perplexity"]), "", examples)
    if score is not None:
        tile = (f"Best {score.replace('_', ' ')}", number(value), "", f"step {step:,}" if step else "")
    return [
        ("Training loss", number(newest.get("loss")), "", f"from {number(first[0])}" if first else ""),
        ("Held-out loss", number(held.get("loss")), "", "" if best is None else f"best {number(best)}"),
        tile,
        ("Samples", whole(facts.last.get("samples")), "", phases),
        ("Steps", whole(facts.last.get("step")), "", count(len(h.restarts), "restart") if h.restarts else ""),
        ("Global batch", batch, "", batch_note or "samples a step"),
        *_noise_scale(facts),
        ("Optimizer", optimizer.upper(), "", f"lr {lr} {lr_note}" if lr != ABSENT else ""),
        ("Throughput", rate(speed), "/s" if speed else "", f"{rate(tokens)} tokens/s" if tokens else "samples, median"),
        ("Wall time", duration(h.seconds) if h.start else ABSENT, "", launches),
        ("Peak memory", number(memory, ".3g"), *(("GiB", "a process") if memory is not None else ("", ""))),
    ]  # fmt: skip


def _noise_scale(facts: Facts) -> list[Tile]:
    noise = facts.noise
    if noise is None:
        return []
    if noise.early:
        return [("Gradient noise scale", ABSENT, "", f"too early: {noise.early}")]
    return [("Gradient noise scale", about(noise.scale), "", "samples, at the end")]


def _now(values: list[str], facts: Facts) -> tuple[str, str]:
    """The value of the current phase, and a note on the phase before it or after it."""
    if len(set(values)) < 2:
        return (values or [ABSENT])[0], ""
    at = min(len(facts.boundaries), len(values) - 1)
    return values[at], f"after {values[at - 1]}" if at else f"then {values[1]}"


def evaluations(facts: Facts) -> Table:
    lines = facts.history.eval
    extra = [key for key in HELD[2:] if any(line.get(key) is not None for line in lines)]
    held = [
        _column(key, share if key.startswith("accuracy") else number, key.replace("_", ", "))
        for key in ("loss", "accuracy", *extra)
    ]
    keys = dict.fromkeys(key for line in lines for key in line if key not in HELD)
    for name in [key.removeprefix("loss_") for key in keys if key.startswith("loss_")]:
        for score in ("loss", "accuracy", *scores.NAMES):
            if (key := f"{score}_{name}") in keys:
                shown = share if score == "accuracy" else number
                held.append(_column(key, shown, f"{score.replace('_', ' ')}, {name}"))
    return Table([_column("step"), _column("samples"), *held, _column("examples")], lines)


def groups(facts: Facts) -> Table:
    """What is trained with which weight decay, trust ratio and learning rate."""
    phase = [_column("phase")] if len({group["phase"] for group in facts.groups}) > 1 else []
    of_muon = any(group.get("muon") is not None for group in facts.groups)
    rule = [("updated by", "", lambda group: "Muon" if group["muon"] else "AdamW")] if of_muon else []
    return Table([
        *phase, *rule, _column("weight_decay", lambda value: number(value, "g"), "weight decay"),
        ("trust ratio", "", lambda group: "yes" if group.get("trust_ratio") else "no"),
        ("learning rate", "n", lambda group: f"× {number(group.get('lr_factor'), 'g')}"),
        _column("parameters"), _column("elements"),
    ], facts.groups)  # fmt: skip


def checkpoints(facts: Facts) -> Table:
    def kept(line: Line) -> bool:
        return (facts.run / line["path"]).exists() or Path(line["path"]).exists()

    return Table([
        _column("step"), _column("samples"), _column("seconds", lambda value: number(value, ".2f"), "seconds to save"),
        _column("blocked_seconds", lambda value: number(value, ".2f"), "of them training stood still"),
        _column("waited_seconds", lambda value: number(value, ".2f"), "waiting for the writing"),
        ("path", "path", lambda line: _relative(line["path"], facts.run)),
        ("", "note", lambda line: "" if kept(line) else "not kept"),
    ], facts.history.checkpoint)  # fmt: skip


def goodput(facts: Facts) -> Table:
    """What the time went to."""
    seconds = facts.goodput.seconds
    return Table([
        ("part", "", lambda row: row[0]), ("share", "n", lambda row: share(row[1])),
        ("time", "n", lambda row: duration(seconds[row[0]])),
    ], list(facts.goodput.shares.items()))  # fmt: skip


def layers(facts: Facts) -> Table:
    """The first and the last trust ratio of every parameter."""
    lines = facts.history.layers
    first, last = (lines[0]["trust_ratio"], lines[-1]["trust_ratio"]) if lines else ({}, {})
    return Table([
        ("block", "", lambda name: name.group), ("parameter", "", lambda name: name.short),
        ("first", "n", lambda name: number(first.get(name.full), ".4g")),
        ("last", "n", lambda name: number(last.get(name.full), ".4g")),
    ], shorten(last))  # fmt: skip


def _column(key: str, form: Callable[..., str] = whole, label: str = "") -> Column:
    """A column of one value of each line."""
    return label or key, "n", lambda line: form(line.get(key))


def _relative(path: str, run: Path) -> str:
    """The path relative to the run directory if it is inside."""
    try:
        return os.fspath(Path(path).resolve().relative_to(run.resolve()))
    except ValueError:
        return path
