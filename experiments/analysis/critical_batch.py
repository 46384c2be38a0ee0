"""Fits the critical batch size to the samples needed to reach a target: ``samples = S_min (1 + B / B_crit)``.

McCandlish et al. 2018 (1812.06162, equation 5.3, in samples instead of steps). Far below B_crit a run needs the same number
of samples at any batch size B, and its steps fall as 1 / B. Far above it the number of steps is constant, and a larger batch
is wasted. At B_crit a run needs twice the minimum of samples and twice the minimum of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LEVEL = 0.9  # confidence level of the intervals


@dataclass(frozen=True)
class Fit:
    """The fitted curve and its uncertainty."""

    s_min: float  # samples needed at vanishing batch size
    b_crit: float  # samples per step; inf: no batch size needed more samples than the others
    b_crit_low: float  # lower end of the 90 % confidence interval
    b_crit_high: float  # upper end; inf: the measurements set no upper bound
    batches: int  # number of different batch sizes
    runs: int
    spread: float  # root mean square relative deviation of runs from the curve
    warnings: list[str] = field(default_factory=list)
    bootstrap: Floats = field(default_factory=lambda: np.zeros((0, 2)), compare=False, repr=False)
    """(S_min, B_crit) of each bootstrap draw [draws, 2]; empty for two batch sizes, which leave no error estimate."""

    def samples(self, batch: float) -> float:
        """Samples to the target at a batch size."""
        return self.s_min * (1 + batch / self.b_crit)

    def steps(self, batch: float) -> float:
        """Steps to the target at a batch size."""
        return self.samples(batch) / batch

    def band(self, batches: Floats) -> tuple[Floats, Floats] | None:
        """90 % confidence band of the samples at each batch size, (lower, upper); None without an error estimate."""
        if not len(self.bootstrap):
            return None
        curves = self.bootstrap[:, :1] * (1 + batches / self.bootstrap[:, 1:])
        low, high = np.quantile(curves, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
        return low, high

    def json(self) -> dict[str, Any]:
        """As a JSON object; null stands for infinity."""

        def finite(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "s_min": self.s_min, "b_crit": finite(self.b_crit), "b_crit_low": self.b_crit_low,
            "b_crit_high": finite(self.b_crit_high), "level": _LEVEL, "batches": self.batches, "runs": self.runs,
            "spread": self.spread, "warnings": self.warnings,
        }  # fmt: skip


def fit(batches: Sequence[float], samples: Sequence[float], seed: int = 0, draws: int = 2000) -> Fit:
    """Fit the curve by least squares of logarithms, with a bootstrap confidence interval.

    Runs at one batch size differ by seed; batch sizes also differ by how well each was tuned. The bootstrap therefore
    resamples batch sizes, and runs within each. The interval is wide if few batch sizes determine the curve.

    Args:
        batches: batch size of each run, in samples per step.
        samples: samples that each run needed to reach the target.
        seed: of the bootstrap.
        draws: number of bootstrap samples; with far fewer the ends of the interval are noisy.

    Raises:
        ValueError: if there are fewer than two different batch sizes, or a number is not positive.
    """
    b, y = np.asarray(batches, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    if b.shape != y.shape or b.ndim != 1:
        raise ValueError(f"{b.size} batch sizes and {y.size} numbers of samples: give one of each per run")
    wrong = np.flatnonzero(~((b > 0) & (y > 0) & np.isfinite(b) & np.isfinite(y)))
    if wrong.size:
        first = wrong[0]
        raise ValueError(f"run {first + 1}: batch {b[first]:g}, {y[first]:g} samples: both must be positive numbers")
    sizes = np.unique(b)
    if sizes.size < 2:
        raise ValueError("a fit needs two or more batch sizes, better five; these runs have only one")
    (s_min,), (b_crit,) = _curves(b[None], y[None], np.ones((1, b.size)))
    spread = float(np.sqrt(np.mean(np.log(y / (s_min * (1 + b / b_crit))) ** 2)))
    weight = _bootstrap_weights(b, sizes, draws, np.random.default_rng(seed))
    drawn_s, drawn_b = _curves(np.broadcast_to(b, weight.shape), np.broadcast_to(y, weight.shape), weight)
    low, high = np.quantile(1 / drawn_b, [(1 + _LEVEL) / 2, (1 - _LEVEL) / 2])
    # Two batch sizes determine the curve exactly, whatever their error.
    bounds = (float(_inverse(low)), float(_inverse(high))) if sizes.size > 2 else (0.0, math.inf)
    found = Fit(
        float(s_min), float(b_crit), *bounds, sizes.size, b.size, spread,
        bootstrap=np.stack([drawn_s, drawn_b], 1) if sizes.size > 2 else np.zeros((0, 2)),
    )  # fmt: skip
    found.warnings.extend(_warnings(found, sizes))
    return found


def _inverse(rate: float) -> float:
    return 1 / rate if rate > 0 else math.inf


def _curves(b: Floats, y: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """(S_min, B_crit) for each row of measurements [draws, runs].

    Gauss-Newton on log(y) - log(a + c B), for all draws at once: each iteration fits a weighted straight line. c is bounded
    by 0 from below, because no batch size can reduce the samples; at the bound the samples are constant and B_crit is
    infinite.
    """
    unit = np.max(b)
    x = b / unit
    mean = np.broadcast_to(np.sum(weight * y, 1, keepdims=True) / np.sum(weight, 1, keepdims=True), y.shape)
    for _ in range(60):
        w = weight / mean**2
        z = mean * (1 + np.log(y / mean))
        s, sx, sxx = w.sum(1), (w * x).sum(1), (w * x * x).sum(1)
        sz, sxz = (w * z).sum(1), (w * x * z).sum(1)
        determinant = s * sxx - sx * sx
        with np.errstate(divide="ignore", invalid="ignore"):
            c = np.where(determinant > 1e-12 * s * sxx, (s * sxz - sx * sz) / determinant, 0.0)
        c = np.maximum(c, 0.0)
        a = (sz - c * sx) / s
        # A line through the origin: samples are proportional to the batch size from the first one on.
        steep = a <= 0
        c = np.where(steep, sxz / sxx, c)
        a = np.where(steep, 1e-9 * c, a)
        new = np.maximum(a[:, None] + c[:, None] * x, 1e-3 * mean)
        settled = np.allclose(new, mean, rtol=1e-12, atol=0)
        mean = new
        if settled:
            break
    # A rise in the last digits is rounding.
    with np.errstate(divide="ignore"):
        return a, unit * a / np.where(c > 1e-9 * a, c, 0.0)


def _bootstrap_weights(b: Floats, sizes: Floats, draws: int, random: np.random.Generator) -> Floats:
    """Bootstrap samples as weights [draws, runs]: batch sizes are drawn with replacement, and runs within each."""
    even = np.full(sizes.size, 1 / sizes.size)
    times = random.multinomial(sizes.size, even, draws)
    while (alone := (times > 0).sum(1) == 1).any():  # a single batch size determines no curve
        times[alone] = random.multinomial(sizes.size, even, int(alone.sum()))
    weight = np.zeros((draws, b.size))
    for index, size in enumerate(sizes):
        runs = np.flatnonzero(b == size)
        weight[:, runs] = random.multinomial(times[:, index] * runs.size, np.full(runs.size, 1 / runs.size))
    return weight


def _warnings(found: Fit, sizes: Floats) -> list[str]:
    warnings = []
    smallest, largest = sizes[0], sizes[-1]
    if sizes.size < 4:
        none = " and give no error estimate" if sizes.size == 2 else ""
        warnings.append(f"{sizes.size} batch sizes are few for two parameters{none}: measure at five or more")
    if math.isinf(found.b_crit):
        warnings.append(
            f"no batch size up to {largest:,.0f} needs more samples: the critical batch size lies above; measure at larger ones"
        )
    elif math.isinf(found.b_crit_high):
        warnings.append("the measurements set no upper bound: measure at larger batch sizes")
    elif found.b_crit_high > 10 * found.b_crit_low:
        warnings.append("the interval spans more than a factor of ten: measure at more batch sizes, or with more seeds")
    if math.isfinite(found.b_crit) and found.b_crit > 2 * largest:
        warnings.append(f"B_crit is an extrapolation: it lies above all measured batch sizes (up to {largest:,.0f})")
    if found.b_crit < smallest:
        warnings.append(f"B_crit lies below all measured batch sizes (from {smallest:,.0f}): measure at smaller ones")
    return warnings
