"""``bellwether fit``: fit the critical batch size to a file of measurements; print it as text or JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator

from bellwether.experiments.analysis import convergence_points, critical_batch, fit_checks
from bellwether.experiments.analysis.mlperf_points import Unit
from bellwether.experiments.analysis.points import Points
from bellwether.trainer.config import ConfigError
from bellwether.trainer.report.facts import count


def show(
    path: str,
    unit: Unit | None,
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
        fit = points.fit()
    except ValueError as error:
        raise ConfigError("FILE", path, str(error)) from None
    checks = fit_checks.check(fit)
    if as_json:
        warnings = [*fit.warnings, *checks.warnings]
        found = {"missed": points.missed, "workload": points.workload, "checks": checks.json(), "warnings": warnings}
        print(json.dumps({**fit.json(), **found}, indent=1))
    else:
        _print(path, points, fit, checks)
    return 0


def _print(path: str, points: Points, fit: critical_batch.Fit, checks: fit_checks.Checks) -> None:
    missed = f"; {count(fit.missed, 'run')} missed the target, and need more than they had" if fit.missed else ""
    missed += (
        f"; {count(points.left_out, 'run')} missed it after an unknown length: left out" if points.left_out else ""
    )
    print(f"{path}: {count(fit.runs, 'run')} at {fit.batches} batch sizes{missed}")
    knee = f", with a knee of shape {fit.shape:.2g}" if not 0.9 < fit.shape < 1.1 else ""
    print(f"  samples = S_min (1 + B / B_crit){knee}; rms deviation of a run {100 * fit.spread:.1f} %\n")
    largest = max(points.batches)
    print(f"  S_min   {fit.s_min:,.0f} samples")
    print(f"  B_crit  {b_crit(fit, largest)}\n")
    for line in _table(fit, checks):
        print(line)
    if checks.left_out is not None:
        low, high = (f"{end:,.0f}" if math.isfinite(end) else "no bound" for end in checks.left_out)
        print(f"\n  with any one batch size left out, B_crit is {low} to {high}")
    if checks.halves is not None and checks.halves.holds:
        h = checks.halves
        print(
            f"  the smaller half of the batch sizes predicts {h.low:,.0f} to {h.high:,.0f} samples at batch {h.batch:,.0f}, "
            f"measured were {h.measured:,.0f}"
        )
    for warning in [*fit.warnings, *checks.warnings]:
        print(f"\n  note: {warning}")


def _table(fit: critical_batch.Fit, checks: fit_checks.Checks) -> Iterator[str]:
    runs = fit.used
    assert runs is not None
    off = {each.batch: each for each in checks.deviations}
    yield f"  {'batch':>9}  {'runs':>4}  {'median samples':>14}  {'curve':>14}  {'median steps':>12}  efficiency  off the others' curve"
    for batch in sorted(set(runs.batch.tolist())):
        own = runs.batch == batch
        values = [s if hit else math.inf for s, hit in zip(runs.samples[own], runs.reached[own], strict=True)]
        median = statistics.median(values)
        text = f"{median:,.0f}" if math.isfinite(median) else "missed"
        steps = f"{median / batch:,.0f}" if math.isfinite(median) else "missed"
        found = off.get(batch)
        note = f"  {100 * (found.factor - 1):+18.0f} %{', beyond noise' if found.beyond else ''}" if found else ""
        yield (
            f"  {batch:>9,.0f}  {len(values):>4}  {text:>14}  {fit.samples(batch):>14,.0f}  {steps:>12}  "
            f"{fit.efficiency(batch):>10.0%}{note}"
        )


def b_crit(fit: critical_batch.Fit, largest: float) -> str:
    """B_crit and its interval as text; `largest` is the largest measured batch size."""
    interval = span(fit, largest)
    text = f"{size(fit, largest)}, {interval} with 90 % probability" if interval else size(fit, largest)
    return f"{text}: an extrapolation beyond the largest batch" if fit.extrapolated else text


def size(fit: critical_batch.Fit, largest: float) -> str:
    """B_crit as text."""
    if math.isinf(fit.b_crit):
        return f"above {largest:,.0f}"
    return f"{fit.b_crit:,.0f}" if fit.b_crit >= 1 else "below 1"


def span(fit: critical_batch.Fit, largest: float) -> str:
    """The 90 % interval as text; empty if there is none."""
    low = f"{fit.b_crit_low:,.0f}" if math.isfinite(fit.b_crit_low) else f"{largest:,.0f}"
    if math.isfinite(fit.b_crit_high):
        return f"{low} to {fit.b_crit_high:,.0f}" if fit.b_crit_low > 0 else f"at most {fit.b_crit_high:,.0f}"
    return f"at least {low}" if fit.b_crit_low > 0 else ""
