"""Summarizes the runs of each batch size: where its samples to the target lie, and how exactly the runs tell.

The logarithm of a run's samples is normal around that of its batch size, with a deviation that all batch sizes share. A run that was
evaluated every w samples and reached its target at y needed between y - w and y. A run that ended at y without the target needs more
than y: it is censored, and counts as such instead of being dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from bellwether.experiments.analysis.growth import Floats

NDBool = NDArray[np.bool_]

_SIGMAS = np.geomspace(0.002, 0.8, 25)  # deviations of the seeds that are considered
_PRIOR = (np.log(0.05), 1.0)  # log-normal: MLPerf's seeds deviate by 1 to 10 %
_KEPT = 5  # of them, that the further calculation uses
_GRID = np.linspace(-6.0, 6.0, 81)


@dataclass(frozen=True)
class Runs:
    """Measured runs, as arrays of one element each."""

    batch: Floats
    samples: Floats  #: to the target; of a run that missed it, those that it was trained on
    reached: NDBool
    width: Floats  #: samples between two evaluations; 0: evaluated all the time

    def without(self, dropped: NDBool) -> Runs:
        kept = ~dropped
        return Runs(self.batch[kept], self.samples[kept], self.reached[kept], self.width[kept])


@dataclass(frozen=True)
class Summary:
    """The batch sizes under one assumed deviation of the seeds."""

    sigma: float  #: deviation of the logarithm of a run; 0: single runs, whose deviation is one with that of the batch size
    weight: float  #: probability of `sigma`
    log_batch: Floats  #: of the batch sizes with runs that reached the target
    mean: Floats  #: of the logarithm of their samples
    variance: Floats  #: of `mean`
    missed: list[tuple[float, Floats]]  #: (log batch size, logarithms of the samples) of those that no run reached


def summarize(runs: Runs) -> list[Summary]:
    """Summaries under several deviations of the seeds, weighted by how well they agree with the runs."""
    sizes = np.unique(runs.batch)
    groups = [runs.batch == size for size in sizes]
    with_any = [group for group in groups if runs.reached[group].any()]
    lost = [(float(np.log(runs.batch[g][0])), np.log(runs.samples[g])) for g in groups if not runs.reached[g].any()]
    log_batch = np.log([runs.batch[group][0] for group in with_any])
    parts = [_bounds(runs, group) for group in with_any]
    if all(len(low) == 1 for low, _ in parts):
        # A value between two evaluations too: the width of the interval is its only error here.
        mean = np.array([(low[0] + high[0]) / 2 for low, high in parts])
        variance = np.array([(high[0] - low[0]) ** 2 / 12 for low, high in parts])
        return [Summary(0.0, 1.0, log_batch, mean, variance, lost)]
    log_weight = np.sum([_moments(*part, _SIGMAS)[2] for part in parts], 0)
    log_weight -= 0.5 * ((np.log(_SIGMAS) - _PRIOR[0]) / _PRIOR[1]) ** 2
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    # A few of them at even shares of the probability stand for all.
    chosen = np.exp(np.interp((np.arange(_KEPT) + 0.5) / _KEPT, np.cumsum(weight) - weight / 2, np.log(_SIGMAS)))
    moments = [_moments(*part, chosen) for part in parts]
    mean, variance = (np.stack([each[part] for each in moments], 1) for part in (0, 1))  # [sigma, batch size]
    return [Summary(float(sigma), 1 / _KEPT, log_batch, mean[i], variance[i], lost) for i, sigma in enumerate(chosen)]


def _bounds(runs: Runs, group: NDBool) -> tuple[Floats, Floats]:
    """Logarithms between which each run of a batch size lies; the upper one is inf for a run that missed."""
    samples, width, reached = runs.samples[group], runs.width[group], runs.reached[group]
    # Runs evaluated once or twice have no lower bound worth the name: the second half of a run is assumed.
    low = np.where(reached, np.maximum(samples - width, samples / 2), samples)
    return np.log(low), np.where(reached, np.log(samples), np.inf)


def _moments(low: Floats, high: Floats, sigma: Floats) -> tuple[Floats, Floats, Floats]:
    """(mean, variance, logarithm of the probability of the runs) of the location of a batch size, under a flat prior, for each sigma."""
    exact = low == high
    if exact.all():
        count, square = len(low), float(np.square(low - low.mean()).sum())
        return np.full(len(sigma), low.mean()), sigma**2 / count, -(count - 1) * np.log(sigma) - square / (2 * sigma**2)
    bounded = np.isfinite(high)
    end = np.where(bounded, high, low)
    middle = (low + end) / 2
    spread = (sigma + float((end - low).max())) / np.sqrt(bounded.sum())
    # Runs that missed move the location up without bound, so the grid reaches further there.
    step = (spread if bounded.all() else 2 * spread + float(np.ptp(middle)) / 3)[:, None]
    location = float(middle[bounded].mean()) + step * _GRID  # [sigma, grid]
    sigmas = sigma[:, None, None]
    above, below = (location[..., None] - low) / sigmas, (location[..., None] - end) / sigmas
    log_density = np.zeros_like(location)
    for kind, value in (
        (exact & bounded, lambda here: -0.5 * above[..., here] ** 2 - np.log(sigmas)),
        (~exact & bounded, lambda here: _log_difference(above[..., here], below[..., here])),
        (~bounded, lambda here: log_ndtr(above[..., here])),
    ):
        if kind.any():
            log_density += value(kind).sum(-1)
    largest = log_density.max(1, keepdims=True)
    density = np.exp(log_density - largest)
    total = density.sum(1, keepdims=True)
    mean = (density * location).sum(1, keepdims=True) / total
    variance = (density * (location - mean) ** 2).sum(1, keepdims=True) / total
    return mean[:, 0], variance[:, 0], (largest + np.log(total * step))[:, 0]


def _log_difference(above: Floats, below: Floats) -> Floats:
    """log(Phi(above) - Phi(below)), above > below, exact in both tails."""
    flip = below > 0
    high, low = np.where(flip, -below, above), np.where(flip, -above, below)
    upper, lower = log_ndtr(high), log_ndtr(low)
    with np.errstate(divide="ignore"):
        return np.asarray(upper + np.log1p(-np.exp(np.minimum(lower - upper, -1e-300))))
