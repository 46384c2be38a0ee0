"""The critical batch from samples to a target at several batches: ``samples = S_min (1 + B / B_crit)``.

McCandlish et al. 2018 (1812.06162, equation 5.3, in samples instead of steps): far below B_crit a run needs the same samples
at any batch, and steps fall as 1 / B; far beyond it needs the same steps, and the batch is wasted. At B_crit it takes twice
the least samples, and twice the least steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LEVEL = 0.9  # share of the times that the interval is to hold


@dataclass(frozen=True)
class Fit:
    """The curve through measurements, and how well they hold it."""

    s_min: float  # samples that the smallest batches would need
    b_crit: float  # samples a step; inf: no batch needed more samples than the others
    b_crit_low: float  # of an interval that holds 9 times out of 10
    b_crit_high: float  # inf: the measurements set no upper bound
    batches: int  # different ones
    runs: int
    spread: float  # typical relative distance of a run from the curve
    warnings: list[str] = field(default_factory=list)
    drawn: Floats = field(default_factory=lambda: np.zeros((0, 2)), compare=False, repr=False)
    """(S_min, B_crit) of each bootstrap draw [draws, 2]; empty where two batches leave no error to tell."""

    def samples(self, batch: float) -> float:
        return self.s_min * (1 + batch / self.b_crit)

    def steps(self, batch: float) -> float:
        return self.samples(batch) / batch

    def band(self, batches: Floats) -> tuple[Floats, Floats] | None:
        """Where the curve lies 9 times out of 10 at each batch, (lower, upper); None where nothing tells the error."""
        if not len(self.drawn):
            return None
        curves = self.drawn[:, :1] * (1 + batches / self.drawn[:, 1:])
        low, high = np.quantile(curves, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
        return low, high

    def json(self) -> dict[str, Any]:
        """With null for what is not bounded, as JSON has no infinity."""

        def finite(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "s_min": self.s_min, "b_crit": finite(self.b_crit), "b_crit_low": self.b_crit_low,
            "b_crit_high": finite(self.b_crit_high), "level": _LEVEL, "batches": self.batches, "runs": self.runs,
            "spread": self.spread, "warnings": self.warnings,
        }  # fmt: skip


def fit(batches: Sequence[float], samples: Sequence[float], seed: int = 0, draws: int = 2000) -> Fit:
    """The curve that is nearest in relative terms (least squares of logarithms), with a bootstrap interval.

    Runs at one batch differ by their seeds, batches also by how well each was tuned. So the interval draws batches, and
    runs within each, anew: it is wide where few batches hold the curve.

    Args:
        batches: of each run, in samples a step.
        samples: that each run took to reach the target.
        seed: of the draws.
        draws: of the bootstrap; far fewer make the interval's ends shaky.

    Raises:
        ValueError: if there are fewer than two different batches, or a number is not positive.
    """
    b, y = np.asarray(batches, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    if b.shape != y.shape or b.ndim != 1:
        raise ValueError(f"{b.size} batches and {y.size} numbers of samples: one of each a run")
    wrong = np.flatnonzero(~((b > 0) & (y > 0) & np.isfinite(b) & np.isfinite(y)))
    if wrong.size:
        first = wrong[0]
        raise ValueError(f"run {first + 1}: batch {b[first]:g}, {y[first]:g} samples: both must be positive numbers")
    sizes = np.unique(b)
    if sizes.size < 2:
        raise ValueError("one batch alone says nothing about others: measure at two or more, better at five")
    (s_min,), (b_crit,) = _curves(b[None], y[None], np.ones((1, b.size)))
    spread = float(np.sqrt(np.mean(np.log(y / (s_min * (1 + b / b_crit))) ** 2)))
    weight = _draws(b, sizes, draws, np.random.default_rng(seed))
    least, drawn = _curves(np.broadcast_to(b, weight.shape), np.broadcast_to(y, weight.shape), weight)
    low, high = np.quantile(1 / drawn, [(1 + _LEVEL) / 2, (1 - _LEVEL) / 2])
    # Two batches hold the curve exactly, whatever their error.
    bounds = (float(_inverse(low)), float(_inverse(high))) if sizes.size > 2 else (0.0, math.inf)
    found = Fit(
        float(s_min), float(b_crit), *bounds, sizes.size, b.size, spread,
        drawn=np.stack([least, drawn], 1) if sizes.size > 2 else np.zeros((0, 2)),
    )  # fmt: skip
    found.warnings.extend(_warnings(found, sizes))
    return found


def _inverse(rate: float) -> float:
    return 1 / rate if rate > 0 else math.inf


def _curves(b: Floats, y: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """(S_min, B_crit) for each row of measurements [draws, runs].

    Gauss-Newton on log(y) - log(a + c B), all draws at once: each round is a weighted straight line. c is at least 0, as no
    batch can make samples cheaper; where it would be less, all samples are one and the same, and B_crit is infinite.
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
        # A line through the origin: samples in proportion to the batch from the first batch on.
        steep = a <= 0
        c = np.where(steep, sxz / sxx, c)
        a = np.where(steep, 1e-9 * c, a)
        new = np.maximum(a[:, None] + c[:, None] * x, 1e-3 * mean)
        settled = np.allclose(new, mean, rtol=1e-12, atol=0)
        mean = new
        if settled:
            break
    # A rise in the last digits is none.
    with np.errstate(divide="ignore"):
        return a, unit * a / np.where(c > 1e-9 * a, c, 0.0)


def _draws(b: Floats, sizes: Floats, draws: int, random: np.random.Generator) -> Floats:
    """Bootstrap samples: batches drawn with replacement, and runs within each, as weights [draws, runs]."""
    even = np.full(sizes.size, 1 / sizes.size)
    times = random.multinomial(sizes.size, even, draws)
    while (alone := (times > 0).sum(1) == 1).any():  # one batch holds no curve
        times[alone] = random.multinomial(sizes.size, even, int(alone.sum()))
    weight = np.zeros((draws, b.size))
    for index, size in enumerate(sizes):
        runs = np.flatnonzero(b == size)
        weight[:, runs] = random.multinomial(times[:, index] * runs.size, np.full(runs.size, 1 / runs.size))
    return weight


def _warnings(found: Fit, sizes: Floats) -> list[str]:
    said = []
    smallest, largest = sizes[0], sizes[-1]
    if sizes.size < 4:
        none = ", and leave nothing to tell the error by" if sizes.size == 2 else ""
        said.append(f"{sizes.size} batches hold two parameters badly{none}; measure at five or more")
    if math.isinf(found.b_crit):
        said.append(
            f"no batch up to {largest:,.0f} needs more samples: the critical batch lies beyond; raise the batch"
        )
    elif math.isinf(found.b_crit_high):
        said.append("the measurements set no upper bound: measure at larger batches")
    elif found.b_crit_high > 10 * found.b_crit_low:
        said.append("the interval spans a factor of ten: measure more batches, or more seeds at each")
    if math.isfinite(found.b_crit) and found.b_crit > 2 * largest:
        said.append(f"B_crit lies beyond all that was measured, up to {largest:,.0f}: it is an extrapolation")
    if found.b_crit < smallest:
        said.append(f"B_crit lies below all that was measured, from {smallest:,.0f}: measure at smaller batches")
    return said
