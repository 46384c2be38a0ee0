"""Fits the critical batch size, at which a run needs twice the samples of a small batch, to runs at several batch sizes.

The curve is `growth`, of which ``samples = S_min (1 + B / B_crit)`` is the most probable case. Far below B_crit a run needs the same
number of samples at any batch size B, and its steps fall as 1 / B. Far above it the number of steps is constant, and a larger batch is
wasted. The interval is the one of `posterior`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bellwether.experiments.analysis import typos
from bellwether.experiments.analysis.batch_summaries import Runs, summarize
from bellwether.experiments.analysis.growth import Floats, log_growth
from bellwether.experiments.analysis.posterior import posterior

_LEVEL = 0.9  # probability of the intervals


@dataclass(frozen=True)
class Fit:
    """The fitted curve and its uncertainty."""

    s_min: float  # samples needed at vanishing batch size
    b_crit: float  # samples per step; inf: no batch size needed more samples than the others
    b_crit_low: float  # lower end of the 90 % interval; 0: the measurements set no lower bound
    b_crit_high: float  # upper end; inf: the measurements set no upper bound
    shape: float  # of the knee; 1: samples = S_min (1 + B / B_crit)
    batches: int  # number of different batch sizes
    runs: int
    missed: int  # of the runs, did not reach the target
    spread: float  # root mean square relative deviation from the curve of runs that reached the target
    warnings: list[str] = field(default_factory=list)
    used: Runs | None = field(default=None, compare=False, repr=False)  # without typos
    draws: Floats = field(default_factory=lambda: np.zeros((0, 4)), compare=False, repr=False)
    """Random curves, (log S_min, log B_crit, log shape, deviation of batch sizes) [draws, 4]; empty for two batch sizes, which leave no
    error estimate."""

    def samples(self, batch: float) -> float:
        """Samples to the target at a batch size."""
        return float(self.curve(np.array([batch]))[0])

    def curve(self, batches: Floats) -> Floats:
        """Samples to the target at each batch size."""
        if math.isinf(self.b_crit):
            return np.full(len(batches), self.s_min)
        return np.asarray(self.s_min * np.exp(log_growth(np.log(batches / self.b_crit), math.log(self.shape))))

    def steps(self, batch: float) -> float:
        """Steps to the target at a batch size."""
        return self.samples(batch) / batch

    def efficiency(self, batch: float) -> float:
        """Samples at vanishing batch size relative to those at this batch size."""
        return self.s_min / self.samples(batch)

    def random_curves(self, batches: Floats) -> Floats:
        """Samples to the target at each batch size on each random curve [draws, batches]."""
        a, b, shape, _ = (part[:, None] for part in self.draws.T)
        return np.asarray(np.exp(a + log_growth(np.log(batches) - b, shape)))

    def band(self, batches: Floats) -> tuple[Floats, Floats] | None:
        """90 % band of the samples at each batch size, (lower, upper); None without an error estimate."""
        if not len(self.draws):
            return None
        low, high = np.quantile(self.random_curves(batches), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
        return low, high

    @property
    def extrapolated(self) -> bool:
        """Whether B_crit lies above all measured batch sizes."""
        return self.used is not None and self.b_crit > float(self.used.batch.max())

    def json(self) -> dict[str, Any]:
        """As a JSON object; null stands for infinity."""

        def finite(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "s_min": self.s_min, "b_crit": finite(self.b_crit), "b_crit_low": self.b_crit_low,
            "b_crit_high": finite(self.b_crit_high), "level": _LEVEL, "shape": self.shape, "batches": self.batches,
            "runs": self.runs, "missed": self.missed, "spread": self.spread, "extrapolated": self.extrapolated,
            "warnings": self.warnings,
        }  # fmt: skip


def fit(
    batches: Sequence[float],
    samples: Sequence[float],
    reached: Sequence[bool] | None = None,
    width: Sequence[float] | None = None,
) -> Fit:
    """Fit the curve.

    Args:
        batches: batch size of each run, in samples per step.
        samples: samples that each run needed to reach the target; of a run that missed it, those that it was trained on.
        reached: whether each run reached the target; None: all did.
        width: samples between two evaluations of each run, as the target was reached somewhere in between; None: 0.

    Raises:
        ValueError: if fewer than two different batch sizes reached the target, or a number is not positive.
    """
    runs = _runs(batches, samples, reached, width)
    runs, warnings = typos.remove(runs)
    return _fit(runs, warnings)


def refit(runs: Runs) -> Fit:
    """Fit the curve to runs that have been checked."""
    return _fit(runs, [])


def _fit(runs: Runs, warnings: list[str]) -> Fit:
    sizes = np.unique(runs.batch[runs.reached])
    if sizes.size < 2:
        raise ValueError(
            "a fit needs two or more batch sizes that reached the target, better five; these runs have only one"
        )
    summaries = summarize(runs)
    found = posterior(summaries, _LEVEL)
    b_crit = math.exp(found.log_b_crit) if found.rising else math.inf
    log_s_min = found.log_s_min + (0.0 if found.rising else float(_growth_at(found, sizes)))
    low, high, draws = math.exp(found.low), math.exp(found.high), found.draws
    if sizes.size == 2:  # they determine a curve exactly, whatever their error
        low, high, draws = 0.0, math.inf, np.zeros((0, 4))
    done = Fit(
        math.exp(log_s_min), b_crit, low, high, math.exp(found.log_shape), int(np.unique(runs.batch).size),
        len(runs.batch), int((~runs.reached).sum()), 0.0, used=runs, draws=draws,
    )  # fmt: skip
    # The target was reached between two evaluations, in the middle as far as anyone knows.
    middle = np.sqrt(runs.samples * np.maximum(runs.samples - runs.width, runs.samples / 2))
    deviations = np.log(middle / done.curve(runs.batch))[runs.reached]
    return Fit(
        **{
            **vars(done),
            "spread": float(np.sqrt(np.mean(deviations**2))),
            "warnings": [*warnings, *_warnings(done, sizes)],
        }
    )


def _growth_at(found: Any, sizes: Floats) -> float:
    return float(np.mean(log_growth(np.log(sizes) - found.log_b_crit, found.log_shape)))


def _runs(
    batches: Sequence[float], samples: Sequence[float], reached: Sequence[bool] | None, width: Sequence[float] | None
) -> Runs:
    b, y = np.asarray(batches, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    if b.shape != y.shape or b.ndim != 1:
        raise ValueError(f"{b.size} batch sizes and {y.size} numbers of samples: give one of each per run")
    wrong = np.flatnonzero(~((b > 0) & (y > 0) & np.isfinite(b) & np.isfinite(y)))
    if wrong.size:
        first = wrong[0]
        raise ValueError(f"run {first + 1}: batch {b[first]:g}, {y[first]:g} samples: both must be positive numbers")
    return Runs(
        b, y, np.ones(b.size, dtype=bool) if reached is None else np.asarray(reached, dtype=bool),
        np.zeros(b.size) if width is None else np.asarray(width, dtype=np.float64),
    )  # fmt: skip


def _warnings(found: Fit, sizes: Floats) -> list[str]:
    warnings = []
    smallest, largest = sizes[0], sizes[-1]
    if sizes.size < 4:
        none = " and give no error estimate" if sizes.size == 2 else ""
        warnings.append(f"{sizes.size} batch sizes are few for a curve{none}: measure at five or more")
    if math.isinf(found.b_crit):
        warnings.append(
            f"no batch size up to {largest:,.0f} needs more samples: the critical batch size lies above; measure at larger ones"
        )
    elif math.isinf(found.b_crit_high):
        warnings.append("the measurements set no upper bound: measure at larger batch sizes")
    elif found.b_crit_high > 10 * found.b_crit_low:
        warnings.append("the interval spans more than a factor of ten: measure at more batch sizes, or with more seeds")
    if math.isfinite(found.b_crit) and found.b_crit > largest:
        warnings.append(f"B_crit is an extrapolation: it lies above all measured batch sizes (up to {largest:,.0f})")
    if found.b_crit < smallest:
        warnings.append(f"B_crit lies below all measured batch sizes (from {smallest:,.0f}): measure at smaller ones")
    return warnings
