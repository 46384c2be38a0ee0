"""The results as Markdown: two tables of rates, one of what a step consists of, and notes."""

from __future__ import annotations

from typing import Any

from scripts.bench_train.contestants import CONTESTANTS, REFERENCE
from scripts.bench_train.rounds import Result
from scripts.measurements import Spread, largest_difference, rounded

# All start from the same weights and see the same samples in fp32, without dropout; they differ in the order of sums, which
# AdamW carries into every weight. A wrong clipping, decay or rate is off by more than 1e-2 within 20 steps.
TOLERANCE = 2e-3


def is_peer(result: Result, reference: Result | None) -> bool:
    """Whether a contestant's first losses are the reference's: only then is its speed comparable."""
    if reference is None or not reference.losses or len(result.losses) != len(reference.losses):
        return False
    return largest_difference(result.losses, reference.losses) <= TOLERANCE


def reference_of(results: list[Result], workload: str, best: bool) -> Result | None:
    return next((r for r in results if (r.contestant, r.workload, r.best) == (REFERENCE, workload, best)), None)


def ratio(result: Result, reference: Result | None) -> str:
    """Its rate over the reference's, or why there is none."""
    if reference is None or not reference.wall:
        return ""
    if result is reference:
        return "1"
    if not is_peer(result, reference):
        return "other losses"
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
    lines = ["| workload | by | samples a second | of a core | real tokens a second | rate / torch DDP | largest difference of loss |",
             "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for row in rows:
        if not row.wall:
            continue
        reference = reference_of(results, row.workload, row.best)
        wall, cpu = Spread.of(row.wall), Spread.of(row.cpu)
        tokens = about["tokens"].get(row.workload)
        same = reference is not None and len(reference.losses) == len(row.losses)
        difference = f"{largest_difference(row.losses, reference.losses):.1e}" if same and reference is not None else ""
        lines.append(
            f"| {row.workload} | {row.contestant} | {wall.text()} | {cpu.text()} | "
            f"{'' if tokens is None else rounded(wall.median * tokens)} | {ratio(row, reference)} | {difference} |"
        )
    return lines


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
        f"Same weights, samples, masks, batches, AdamW at a constant rate without decay, gradients clipped at 1. The first {about['losses']} "
        f"losses have to agree with torch DDP's within {TOLERANCE}; a contestant with others gets no ratio.",
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
