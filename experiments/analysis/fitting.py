"""``bellwether fit``: the critical batch of a file of measurements, for people or as JSON."""

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
    """Fit and print.

    Raises:
        ConfigError: if the file cannot be read, or does not hold two batches.
    """
    found = convergence_points.read(path, unit, dataset_size, target, optimizer)
    try:
        fit = critical_batch.fit(found.batches, found.samples)
    except ValueError as error:
        raise ConfigError("FILE", path, str(error)) from None
    if as_json:
        print(json.dumps({**fit.json(), "missed": found.missed}, indent=1))
        return 0
    print(f"{path}: {count(fit.runs, 'run')} at {fit.batches} batches", end="")
    print(f"; {found.missed:,} that missed the target, left out" if found.missed else "")
    print(f"  samples = S_min (1 + B / B_crit), {100 * fit.spread:.1f} % typical distance of a run\n")
    print(f"  S_min   {fit.s_min:,.0f} samples")
    largest = max(found.batches)
    print(f"  B_crit  {b_crit(fit, largest)}\n")
    at: dict[float, list[float]] = defaultdict(list)
    for batch, samples in zip(found.batches, found.samples, strict=True):
        at[batch].append(samples)
    print(f"  {'batch':>9}  {'runs':>4}  {'median samples':>14}  {'curve':>12}  {'median steps':>12}  efficiency")
    for batch in sorted(at):
        middle = statistics.median(at[batch])
        share = 1 / (1 + batch / fit.b_crit)
        print(
            f"  {batch:>9,.0f}  {len(at[batch]):>4}  {middle:>14,.0f}  {fit.samples(batch):>12,.0f}  "
            f"{middle / batch:>12,.0f}  {share:>9.0%}"
        )
    for warning in fit.warnings:
        print(f"\n  note: {warning}")
    return 0


def b_crit(fit: critical_batch.Fit, largest: float) -> str:
    """B_crit and its interval in words; `largest`: of the batches that were measured."""
    interval = span(fit, largest)
    return f"{size(fit, largest)}, {interval} with 90 % confidence" if interval else size(fit, largest)


def size(fit: critical_batch.Fit, largest: float) -> str:
    if math.isinf(fit.b_crit):
        return f"beyond {largest:,.0f}"
    return f"{fit.b_crit:,.0f}" if fit.b_crit >= 1 else "below 1"


def span(fit: critical_batch.Fit, largest: float) -> str:
    """The interval; empty where two batches leave none."""
    low = f"{fit.b_crit_low:,.0f}" if math.isfinite(fit.b_crit_low) else f"{largest:,.0f}"
    if math.isfinite(fit.b_crit_high):
        return f"{low} to {fit.b_crit_high:,.0f}"
    return f"at least {low}" if fit.b_crit_low > 0 else ""
