"""``bellwether fit``: fit the critical batch size to a file of measurements; print it as text or JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict

from bellwether.experiments.analysis import convergence_points, critical_batch
from bellwether.trainer.config import ConfigError
from bellwether.trainer.report.facts import count


def show(
    path: str,
    unit: convergence_points.Unit | None,
    dataset_size: int | None,
    target: str | None,
    optimizer: str | None,
    as_json: bool,
) -> int:
    """Fit and print. Returns the exit status for the shell. For the options see `convergence_points.read`.

    Raises:
        ConfigError: if the file cannot be read, or has runs at fewer than two batch sizes.
    """
    points = convergence_points.read(path, unit, dataset_size, target, optimizer)
    try:
        fit = critical_batch.fit(points.batches, points.samples)
    except ValueError as error:
        raise ConfigError("FILE", path, str(error)) from None
    if as_json:
        print(json.dumps({**fit.json(), "missed": points.missed}, indent=1))
    else:
        _print(path, points, fit)
    return 0


def _print(path: str, points: convergence_points.Points, fit: critical_batch.Fit) -> None:
    missed = f"; {count(points.missed, 'run')} that missed the target excluded" if points.missed else ""
    print(f"{path}: {count(fit.runs, 'run')} at {fit.batches} batch sizes{missed}")
    print(f"  samples = S_min (1 + B / B_crit), rms deviation of a run {100 * fit.spread:.1f} %\n")
    print(f"  S_min   {fit.s_min:,.0f} samples")
    largest = max(points.batches)
    print(f"  B_crit  {b_crit(fit, largest)}\n")
    by_batch: dict[float, list[float]] = defaultdict(list)
    for batch, samples in zip(points.batches, points.samples, strict=True):
        by_batch[batch].append(samples)
    print(f"  {'batch':>9}  {'runs':>4}  {'median samples':>14}  {'curve':>12}  {'median steps':>12}  efficiency")
    for batch in sorted(by_batch):
        median = statistics.median(by_batch[batch])
        efficiency = 1 / (1 + batch / fit.b_crit)
        print(
            f"  {batch:>9,.0f}  {len(by_batch[batch]):>4}  {median:>14,.0f}  {fit.samples(batch):>12,.0f}  "
            f"{median / batch:>12,.0f}  {efficiency:>9.0%}"
        )
    for warning in fit.warnings:
        print(f"\n  note: {warning}")


def b_crit(fit: critical_batch.Fit, largest: float) -> str:
    """B_crit and its interval as text; `largest` is the largest measured batch size."""
    interval = span(fit, largest)
    return f"{size(fit, largest)}, {interval} with 90 % confidence" if interval else size(fit, largest)


def size(fit: critical_batch.Fit, largest: float) -> str:
    """B_crit as text."""
    if math.isinf(fit.b_crit):
        return f"above {largest:,.0f}"
    return f"{fit.b_crit:,.0f}" if fit.b_crit >= 1 else "below 1"


def span(fit: critical_batch.Fit, largest: float) -> str:
    """The confidence interval as text; empty if there is none."""
    low = f"{fit.b_crit_low:,.0f}" if math.isfinite(fit.b_crit_low) else f"{largest:,.0f}"
    if math.isfinite(fit.b_crit_high):
        return f"{low} to {fit.b_crit_high:,.0f}"
    return f"at least {low}" if fit.b_crit_low > 0 else ""
