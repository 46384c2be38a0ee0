"""How far the batch can grow at one point of a run: from the final losses of branches, with the noise between seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.9  # of intervals


@dataclass(frozen=True)
class Limit:
    """The largest batch whose loss stays within the tolerance, in multiples of the base batch.

    Attributes:
        excess: mean loss above the base's on the same seeds, by factor, ascending.
        error: standard error of each excess, pooled over the factors.
        measured: the largest factor that was tried such that it and all smaller ones are within the tolerance.
        factor: where the excess crosses the tolerance, interpolated between the factors; the largest factor if it does not.
        low, high: of a 90 % interval of ``factor``; high is None where the interval reaches beyond the largest factor.
        is_beyond: whether all factors are within the tolerance, so that ``factor`` is a lower bound.
        noise: half the 90 % interval of an excess.
    """

    excess: dict[int, float]
    error: float
    measured: int
    factor: float
    low: float
    high: float | None
    is_beyond: bool
    noise: float


def limit(losses: Mapping[int, Sequence[float]], tolerance: float) -> Limit:
    """The limit from the final losses of each factor, 1 among them, in the same order of seeds.

    A batch counts if it and all smaller ones are within the tolerance (2505.23971, section 3). A loss that is not finite is beyond any.

    Raises:
        ValueError: without the base, with one factor alone, or with different numbers of seeds.
    """
    factors = sorted(losses)
    if factors[0] != 1 or len(factors) < 2 or len({len(each) for each in losses.values()}) != 1:
        raise ValueError(f"losses: {dict(losses)}: needs factor 1 and another, each with the same seeds")
    base = np.array(losses[1], dtype=np.float64)
    differences = {factor: np.array(losses[factor], dtype=np.float64) - base for factor in factors[1:]}
    differences = {f: np.where(np.isfinite(d), d, math.inf) for f, d in differences.items()}
    # A tenth of the runs diverging is not a noise of the mean, and the others say what the noise is.
    excess = {factor: float(np.mean(d)) for factor, d in differences.items()}
    error, quantile = _pooled_error([d for d in differences.values() if np.isfinite(d).all()])
    noise = quantile * error
    points = [(1.0, 0.0), *((float(f), e) for f, e in excess.items())]
    factor, low, high = (_crossing(points, tolerance, shift) for shift in (0.0, noise, -noise))
    within = [f for f in excess if all(e <= tolerance for g, e in excess.items() if g <= f)]
    return Limit(
        excess, error, max(within, default=1), float(factors[-1]) if factor is None else factor,
        float(factors[-1]) if low is None else low, high, factor is None, noise,
    )  # fmt: skip


def _pooled_error(differences: Sequence[np.ndarray]) -> tuple[float, float]:
    """(standard error of a mean difference, quantile of its 90 % interval); infinite where one seed says nothing about noise."""
    from scipy import stats

    seeds = len(differences[0]) if differences else 0
    if seeds < 2:
        return math.inf, 1.0
    variance = float(np.mean([np.var(each, ddof=1) for each in differences]))
    # The differences share the base's losses: they count as half as many as they are.
    freedom = (seeds - 1) * max(1.0, (1 + len(differences)) / 2)
    return math.sqrt(variance / seeds), float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def _crossing(points: Sequence[tuple[float, float]], tolerance: float, shift: float) -> float | None:
    """The factor at which the excess plus a shift first crosses the tolerance, on straight lines between the points; None: nowhere.

    The excess of a small step count grows in proportion to the batch where it is small (McCandlish et al. 2018). The first point, the
    base itself, is exact.
    """
    previous = points[0]
    for factor, excess in points[1:]:
        shifted = excess + shift
        if shifted > tolerance:
            (x0, y0), y1 = previous, shifted
            return x0 if math.isinf(y1) else x0 + (factor - x0) * max(0.0, tolerance - y0) / (y1 - y0)
        previous = (factor, shifted)
    return None


def growth(base: int, curve: Sequence[tuple[int, float]]) -> list[tuple[int, int]]:
    """A batch that doubles whenever the critical batch has doubled (2505.23971, section 5), as ``batch.global`` takes it.

    Args:
        base: the first batch size.
        curve: samples of the run, ascending, and the critical batch there.

    >>> growth(64, [(0, 70), (10_000, 150), (20_000, 600)])
    [(0, 64), (10000, 128), (20000, 512)]
    """
    sizes = [(0, base)]
    for samples, critical in curve:
        batch = sizes[-1][1]
        while 2 * batch <= critical:
            batch *= 2
        if batch > sizes[-1][1]:
            sizes = [(at, size) for at, size in sizes if at < samples] + [(samples, batch)]
    return sizes
