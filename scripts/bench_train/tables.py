"""The results as Markdown: two tables of rates, one of what a step consists of, and notes."""

from __future__ import annotations

import math
from typing import Any

from scripts.bench_train.contestants import CONTESTANTS, REFERENCE
from scripts.bench_train.rounds import Result
from scripts.measurements import Spread, largest_difference, rounded

# All start from the same weights and see the same samples in fp32, without dropout; they differ in the order of sums. The first update
# has no history: by rounding, Bellwether's differed from torch DDP's by 3e-6 of its size (ResNet-20, 2026-11-30). A rate that is 5 % off
# gave 5e-2, a decay of 0.01 gave 5e-3, no clipping 5e-4, gradients that are not averaged 1.
UPDATE_TOLERANCE = 1e-4
# Losses may differ by as many times what 1 ulp in the weights does to the reference's; at least by `LEAST`, relative to them, where this
# is nothing. On BERT, which does not amplify rounding, a decay of 0.01 or half the clipping gives more than that in 20 updates.
LOSS_FACTOR, LEAST = 2.0, 2e-6


def loss_tolerance(reference: Result, about: dict[str, Any]) -> float:
    """How far losses may be from the reference's, relative to them: from runs of the reference that were rounded otherwise."""
    curves = about["rounded_otherwise"].get(reference.workload, [])
    return max([LEAST, *(LOSS_FACTOR * largest_difference(curve, reference.losses) for curve in curves)])


def update_difference(result: Result, reference: Result) -> float:
    """The norm of the difference of the first updates over that of the reference's; infinite where one is not known."""
    if not reference.moved or len(result.moved) != len(reference.moved):
        return math.inf
    difference = math.dist(result.moved, reference.moved) / math.hypot(*reference.moved)
    return math.inf if math.isnan(difference) else difference


def other_training(result: Result, reference: Result, about: dict[str, Any]) -> str:
    """In what a contestant trains otherwise than the reference; empty if it does not: only then is its speed comparable."""
    if update_difference(result, reference) > UPDATE_TOLERANCE:
        return "other update"
    if not reference.losses or len(result.losses) != len(reference.losses):
        return "other losses"
    too_far = largest_difference(result.losses, reference.losses) > loss_tolerance(reference, about)
    return "other losses" if too_far else ""


def reference_of(results: list[Result], workload: str, best: bool) -> Result | None:
    return next((r for r in results if (r.contestant, r.workload, r.best) == (REFERENCE, workload, best)), None)


def ratio(result: Result, reference: Result | None, about: dict[str, Any]) -> str:
    """Its rate over the reference's, or why there is none."""
    if reference is None or not reference.wall:
        return ""
    if result is reference:
        return "1"
    if other := other_training(result, reference, about):
        return other
    found = Spread.of(result.wall).ratio(Spread.of(reference.wall))
    return "ranges overlap" if found is None else f"{found:.2f}"


def page(results: list[Result], about: dict[str, Any]) -> str:
    """All tables and notes."""
    parts = [f"{about['measured']}: `make bench-train`. {about['machine']}", ""]
    for best, title in ((False, "Everyone's defaults"), (True, "Everyone's best")):
        parts += [f"### {title}", "", *_rates([r for r in results if r.best == best], results, about), ""]
        flags = [(one.name, one.best if best else one.defaults) for one in CONTESTANTS]
        parts += [
            *(f"- {name}: {text}" for name, text in flags if any(r.contestant == name and r.wall for r in results)),
            "",
        ]
    parts += [
        "### What a step consists of",
        "",
        *_steps([r for r in results if r.best and r.operations is not None]),
        "",
    ]
    if about["starts"]:
        parts += ["### From the command to the end of the first step", "", "| command | seconds |", "| --- | ---: |"]
        parts += [f"| {name} | {seconds:.1f} |" for name, seconds in about["starts"].items()]
        parts += [""]
    return "\n".join([*parts, *notes(results, about)])


def _rates(rows: list[Result], results: list[Result], about: dict[str, Any]) -> list[str]:
    lines = ["| workload | by | samples a second | of a core | real tokens a second | rate / torch DDP | difference of the first update | largest of the losses |",
             "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for row in rows:
        if not row.wall:
            continue
        reference = reference_of(results, row.workload, row.best)
        wall, cpu = Spread.of(row.wall), Spread.of(row.cpu)
        tokens = about["tokens"].get(row.workload)
        same = reference is not None and len(reference.losses) == len(row.losses)
        update = losses = ""
        if reference is not None:
            update = f"{update_difference(row, reference):.1e}"
            losses = f"{largest_difference(row.losses, reference.losses):.1e}" if same else ""
        lines.append(
            f"| {row.workload} | {row.contestant} | {wall.text()} | {cpu.text()} | "
            f"{'' if tokens is None else rounded(wall.median * tokens)} | {ratio(row, reference, about)} | {update} | {losses} |"
        )
    return lines


def _tolerances(results: list[Result], about: dict[str, Any]) -> str:
    references = [r for r in results if r.contestant == REFERENCE and not r.best and r.losses]
    return ", ".join(f"{r.workload} {loss_tolerance(r, about):.1e}" for r in references)


def _steps(rows: list[Result]) -> list[str]:
    lines = ["| workload | by | operations of a micro-batch | of these read a value | a checkpoint stops the training for, s |",
             "| --- | --- | ---: | ---: | ---: |"]  # fmt: skip
    for row in rows:
        save = "" if row.save is None else f"{row.save:.2f}"
        lines.append(f"| {row.workload} | {row.contestant} | {row.operations:,.0f} | {row.waits:,.1f} | {save} |")
    return lines


def notes(results: list[Result], about: dict[str, Any]) -> list[str]:
    """What the numbers are, and what is missing."""
    lines = [
        f"Two processes over gloo, each on a core of its own with one thread; fp32, {about['rounds']} rounds, in each of which the contestants "
        "of a workload take turns in random order. Median, and lowest to highest. No ratio where the ranges overlap.",
        "Of a core: samples by the CPU time of both processes, which other programs on the machine disturb less than the time on the wall.",
        "Same weights, samples, masks, batches, AdamW at a constant rate without decay, gradients clipped at 1. A contestant whose training is "
        f"another one gets no ratio. Its first update may differ from torch DDP's by {UPDATE_TOLERANCE} of its size, which is before "
        f"rounding is amplified. Its first {about['losses']} losses may differ by {LOSS_FACTOR:g} times what happens to torch DDP's own when "
        f"half of the initial weights are 1 ulp larger ({len(next(iter(about['rounded_otherwise'].values()), []))} runs), at least {LEAST} "
        f"of them: {_tolerances(results, about)}.",
        "All take their batches from Bellwether's loader, whose work is a part of each time.",
        "Operations are counted at torch's dispatcher, without those of the loader; a fused optimizer's C++ is none or one. One that reads a value "
        "is where the host would wait for a GPU. Bellwether's and DeepSpeed's reads are of values on the CPU in part "
        "(`tests/trainer/test_device_waits.py`).",
        f"Load of the machine before and after: {about['load']}.",
        *(
            ["What is quick is not measured: this was `--quick`, to see that everything runs."]
            if about["quick"]
            else []
        ),
    ]
    failed: dict[str, list[str]] = {}
    for row in results:
        if row.problem:
            failed.setdefault(f"{row.contestant}: {row.problem}", []).append(
                f"{row.workload}{', best' if row.best else ''}"
            )
    lines += [f"Not run: {problem} ({len(where)} times)" for problem, where in failed.items()]
    return [f"- {line}" for line in lines]
