"""The critical batch size from a number, a run or a file of measurements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bellwether.experiments.analysis import convergence_points, io
from bellwether.experiments.analysis.critical_batch import Fit
from bellwether.trainer import metrics
from bellwether.trainer.config import ConfigError
from bellwether.trainer.report.facts import Facts, about

# How far a critical batch size may lie from the gradient noise scale: sweeps here measured 5 to 12 times as much (docs/measuring.md).
NOISE_FACTOR = 12


@dataclass(frozen=True)
class CriticalBatch:
    """A critical batch size, in samples, and its source."""

    size: float
    source: str
    low: float | None = None  # of an interval, where the source has one
    high: float | None = None
    workload: str = ""  # that it was measured on, if the source tells
    fit: Fit | None = None  # the fitted curve; None: samples = S_min (1 + B / B_crit)

    def efficiency(self, batch: float) -> float:
        """Minimum of samples relative to those at this batch size (McCandlish et al. 2018, 1812.06162)."""
        return 1 / (1 + batch / self.size) if self.fit is None else self.fit.efficiency(batch)

    def more_samples(self, batch: float, base: float) -> tuple[float, float, float]:
        """Samples to the target at a batch size relative to those at a base: (estimate, ends of the 90 % interval)."""
        estimate = self.efficiency(base) / self.efficiency(batch)
        if self.fit is not None and len(self.fit.draws):
            curves = self.fit.random_curves(np.array([batch, base]))
            low, high = np.quantile(curves[:, 0] / curves[:, 1], [0.05, 0.95])
            return estimate, float(low), float(high)
        if self.low is None:
            return estimate, estimate, estimate
        ends = [1.0 if size is None else (1 + batch / size) / (1 + base / size) for size in (self.low, self.high)]
        return estimate, min(*ends, estimate), max(*ends, estimate)

    def json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"size": self.size, "source": self.source, "low": self.low, "high": self.high, "workload": self.workload}


def read(value: str) -> CriticalBatch:
    """Read ``--critical-batch``.

    Of a run it is the latest gradient noise scale, as in the run's report, with the band in which the critical batch may lie. A file of
    measurements is fitted like in `bellwether fit`.

    Args:
        given: a number of samples, a run directory, or what `bellwether.experiments.analysis.convergence_points` reads.

    Raises:
        ConfigError: if it is none of these, or has no critical batch size.
    """
    try:
        size = float(value.replace("_", "").replace(",", ""))
    except ValueError:
        return _from_path(Path(value))
    if not 0 < size < math.inf:
        raise ConfigError("--critical-batch", value, "is not a batch size", "write a number of samples above 0")
    return CriticalBatch(size, "as given")


def _from_path(path: Path) -> CriticalBatch:
    if (path / metrics.FILE).is_file():
        return _from_run(path)
    if path.is_dir() and not io.is_measured(path):
        raise ConfigError(
            "--critical-batch",
            str(path),
            f"has no {metrics.FILE}",
            "give a run's or a sweep's directory, a file or a number",
        )
    try:
        points = convergence_points.read(path)
    except ConfigError as error:
        option = error.key.startswith("--")  # of fit, which plan does not have
        advice = f"use bellwether fit {path} {error.key} ..., and give its result" if option else error.allowed
        raise ConfigError("--critical-batch", str(path), error.problem, advice) from None
    try:
        fit = points.fit()
    except ValueError as error:
        raise ConfigError("--critical-batch", str(path), str(error)) from None
    if not math.isfinite(fit.b_crit):
        problem = "the critical batch size lies above all measured batch sizes"
        raise ConfigError("--critical-batch", str(path), problem, "remove it, or measure at larger batch sizes")
    high = f"{fit.b_crit_high:,.0f}" if math.isfinite(fit.b_crit_high) else "infinity"
    source = f"fit of {path.name}, {fit.b_crit_low:,.0f} to {high} with 90 % probability"
    if fit.extrapolated:
        source += f", an extrapolation beyond batch {max(points.batches):,.0f}"
    return CriticalBatch(
        fit.b_crit,
        source,
        fit.b_crit_low or None,
        fit.b_crit_high if math.isfinite(fit.b_crit_high) else None,
        points.workload,
        fit,
    )


def _from_run(run: Path) -> CriticalBatch:
    noise = Facts.load(run).noise
    if noise is None:
        problem = f"its {metrics.FILE} has no noise_scale above 0"
        raise ConfigError("--critical-batch", str(run), problem, "give a run that logged it, a file or a number")
    if noise.early:
        problem = f"its noise scale is a mean over {noise.steps:,} steps, and needs {noise.horizon:,}"
        raise ConfigError(
            "--critical-batch", str(run), problem, f"give a longer run, or write {noise.scale:.0f} anyway"
        )
    low, high = noise.scale / NOISE_FACTOR, noise.scale * NOISE_FACTOR
    source = (
        f"a guess from the gradient noise scale of {run.name}: anything from {about(low)} to {about(high)} is possible"
    )
    return CriticalBatch(noise.scale, source, low, high)
