"""Compares `bellwether branch` with a full sweep on a small task. The second table of docs/results/batch-warmup.md.

    OMP_NUM_THREADS=1 python -m scripts.measure_branch runs/batch-warmup docs/results/batch-warmup.md

The task and the full sweep are those of scripts/measure_batch_warmup.py, which runs first: fixed batches to the same number of samples.
The sweep's critical batch is the largest whose final loss is within the tolerance of the base batch's, by the same statistics as a branch's,
once with the base's learning rate scaled by the rule, as in a branch, and once tuned at each batch.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from bellwether.experiments.branch.excess import Limit, limit
from bellwether.experiments.branch.show import BranchRequest, lines, prepare, show
from bellwether.trainer.config import load, validate
from scripts import results_page
from scripts.measure_batch_warmup import BATCHES, RATES, SEEDS, TUNING, Runs, difference, mean
from scripts.small_runs import SAMPLES, config, train

BEGIN, END = "<!-- written by scripts/measure_branch.py -->", "<!-- end of branches -->"
FACTORS, POINTS, BRANCH_SEEDS, TOLERANCE = [2, 4, 8, 16], 4, 4, 0.02
BASE = 32  # the best fixed batch of the sweep


def sweep(runs: Runs, rate: float) -> tuple[Limit, Limit]:
    """The limit of full runs over the base batch, with the rate by the rule and tuned at each batch."""
    factors = [batch // BASE for batch in BATCHES if BASE <= batch <= 4 * BASE]  # beyond is far above the tolerance
    tuned = {
        factor: min(RATES, key=lambda lr, b=factor * BASE: statistics.mean(runs.losses(b, lr, TUNING)))  # type: ignore[misc]
        for factor in factors
    }
    by_rule = {factor: runs.losses(factor * BASE, rate, SEEDS) for factor in factors}
    best = {factor: runs.losses(factor * BASE, tuned[factor], SEEDS) for factor in factors}
    return limit(by_rule, TOLERANCE), limit({**best, 1: by_rule[1]}, TOLERANCE)


def span(found: Limit) -> str:
    high = "" if found.high is None else f"{found.high * BASE:,.0f}"
    interval = f"{found.low * BASE:,.0f} to {high}" if high else f"{found.low * BASE:,.0f} and more"
    return f"{'at least ' if found.is_beyond else ''}{found.factor * BASE:,.0f} ({interval})"


def text(folder: Path) -> str:
    runs = Runs(folder)
    rate = min(RATES, key=lambda lr: statistics.mean(runs.losses(BASE, lr, TUNING)))
    base = folder / "base"
    if not (base / "finished.json").exists():
        changes = {
            "name": "base", "checkpoint": {"every": f"{SAMPLES // 6} samples", "keep": 9, "export": False},
            "log": {"every": "5 steps", "report": False}, "batch": {"global": BASE, "micro": BASE // 4},
        }  # fmt: skip
        train(validate({**config(BASE, rate, 1, folder), **changes}))
    window = f"{SAMPLES // 6} samples"
    request = BranchRequest(str(base), FACTORS, window, None, POINTS, BRANCH_SEEDS, TOLERANCE, json=False)

    def in_this_process(file: Path) -> int:
        train(load(file, ["batch.micro=512"], quiet=True))
        return 0

    assert show(request, in_this_process) == 0
    study, notes = prepare(request)
    results = study.results()
    by_rule, tuned = sweep(Runs(folder), rate)  # with the runs that were finished in the meantime
    runs, schedule = Runs(folder), [list(pair) for pair in study.schedule(results)]
    grown, fixed = runs.losses(schedule, rate, SEEDS), runs.losses(BASE, rate, SEEDS)
    steps, delta = (runs.steps(schedule, rate), runs.steps(BASE, rate)), difference(grown, fixed)
    later = statistics.geometric_mean(result.batch for result in results[1:])
    starts = [result.point.samples for result in results]
    spans = [end - start for start, end in zip(starts, [*starts[1:], SAMPLES], strict=True)]
    typical = SAMPLES / sum(samples / result.batch for samples, result in zip(spans, results, strict=True))
    return "\n".join(
        [
            f"Measured {results_page.measured()}. Run: batch {BASE}, learning rate {rate:g}, {SAMPLES:,} samples.",
            "",
            "```",
            *lines(study, results, study.schedule(results), notes),
            "```",
            "",
            f"| critical batch at a tolerance of {TOLERANCE:g} | samples |",
            "|---|---|",
            f"| full sweep, {len(SEEDS)} seeds, rate by the rule | {span(by_rule)} |",
            f"| full sweep, {len(SEEDS)} seeds, rate tuned at each batch | {span(tuned)} |",
            f"| branches, the fixed batch of as many steps as a run along the curve (harmonic mean over the samples) | {typical:,.0f} |",
            f"| branches, geometric mean over the points after the first | {later:,.0f} |",
            "",
            f"`batch.global: {schedule}` from these branches, {len(SEEDS)} seeds, nothing tuned: {steps[0]:,} steps in place of {steps[1]:,} "
            f"({1 - steps[0] / steps[1]:.0%} fewer), held-out loss {mean(grown)}, {delta[0]:+.4f} ± {delta[1]:.4f} above batch {BASE}.",
            "",
            f"Branches over sweep (by the rule): {typical / (by_rule.factor * BASE):.2f} by the harmonic mean, "
            f"{later / (by_rule.factor * BASE):.2f} by the points after the first.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", nargs="?", help="default: print")
    arguments = parser.parse_args()
    results_page.write(arguments.page, BEGIN, END, text(arguments.folder))


if __name__ == "__main__":
    main()
