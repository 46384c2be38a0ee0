"""The probability of each curve given the runs, on a grid: B_crit, shape of the knee, and deviation of the batch sizes.

Batch sizes deviate from every smooth curve, because each is tuned by itself: by a normal deviation tau, of about 10 % or whatever the
measurements show. S_min is integrated out exactly. So few batch sizes, single seeds, an unusual knee and a bad fit all widen the
interval. Simulated coverage: docs/results/fit.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from bellwether.experiments.analysis.batch_summaries import Summary
from bellwether.experiments.analysis.growth import Floats, log_growth

_BELOW, _ABOVE = 30.0, 100.0  # times the smallest and the largest batch size: where B_crit is looked for
_TAUS = np.geomspace(0.002, 1.5, 14)
_TAU_SCALE = 0.1  # of a half-Cauchy prior
_SHAPE_SPREAD, _SHAPE_END = 0.4, 1.4  # of the logarithm of the shape: deviation of its prior, and largest value
_NODES = (61, 15)  # of B_crit and the shape
_OPEN = 0.02  # a density at an end of the grid above this share of the largest: no bound on this side
_OTHER_CAUSE = (
    0.05  # probability that a batch size misses the target however long it trains: it diverged, or was tuned badly
)
_DRAWS = 2000
_HERMITE = np.polynomial.hermite_e.hermegauss(7)


@dataclass(frozen=True)
class Posterior:
    """What the runs say about B_crit."""

    low: float  #: end of the interval of log(B_crit); -inf: no lower bound
    high: float  #: inf: no upper bound
    rising: bool  #: false: no growth of the samples is seen, and B_crit is beyond all measurements
    log_s_min: float  #: of the most probable curve
    log_b_crit: float
    log_shape: float
    draws: Floats  #: (log S_min, log B_crit, log shape, tau) of random curves [draws, 4]


def posterior(summaries: Sequence[Summary], level: float) -> Posterior:
    """Compute the posterior of the curve.

    Args:
        summaries: of the same runs, from `batch_summaries.summarize`.
        level: of the interval.
    """
    log_batch = summaries[0].log_batch
    bottom, top = log_batch.min() - np.log(_BELOW), log_batch.max() + np.log(_ABOVE)
    log_b, log_shape = np.linspace(bottom, top, _NODES[0]), np.linspace(-_SHAPE_END, _SHAPE_END, _NODES[1])
    for _ in range(4):
        log_weight, a, a_variance = _evaluate(summaries, log_b, log_shape)
        weight = np.exp(log_weight - log_weight.max())
        b_density, s_density = weight.sum((0, 2, 3)), weight.sum((0, 1, 3))
        narrowed = _narrowed(log_b, b_density), _narrowed(log_shape, s_density)
        if all(
            new[1] - new[0] > 0.75 * (old[-1] - old[0]) for new, old in zip(narrowed, (log_b, log_shape), strict=True)
        ):
            break
        log_b, log_shape = (np.linspace(*ends, n) for ends, n in zip(narrowed, _NODES, strict=True))
    best = _refine(summaries, log_b, log_shape, weight)
    is_open = b_density[-1] > _OPEN * b_density.max() and log_b[-1] > top - 1e-9
    is_low = b_density[0] > _OPEN * b_density.max() and log_b[0] < bottom + 1e-9
    cumulative = np.cumsum(b_density) - b_density / 2
    low, high = np.interp(np.array([(1 - level) / 2, (1 + level) / 2]) * b_density.sum(), cumulative, log_b)
    return Posterior(
        -np.inf if is_low else float(low), np.inf if is_open else float(high),
        not (is_open and b_density[-1] > 0.5 * b_density.max()), *best, _draw(weight, log_b, log_shape, a, a_variance),
    )  # fmt: skip


def _refine(
    summaries: Sequence[Summary], log_b: Floats, log_shape: Floats, weight: Floats
) -> tuple[float, float, float]:
    """(log S_min, log B_crit, log shape) of the most probable curve, between the nodes of the grid."""
    _, i, k, _ = np.unravel_index(int(weight.sum((0, 3), keepdims=True).argmax()), (1, len(log_b), len(log_shape), 1))
    center = np.array([log_b[i], log_shape[k]])
    reach = 2 * np.array([log_b[1] - log_b[0], log_shape[1] - log_shape[0]])
    for _ in range(10):
        near = [np.linspace(-r, r, 9) + c for r, c in zip(reach, center, strict=True)]
        near[1] = np.clip(near[1], -_SHAPE_END, _SHAPE_END)
        log_weight, a, _ = _evaluate(summaries, *near)
        fine = np.exp(log_weight - log_weight.max())
        both = fine.sum((0, 3))
        i, k = np.unravel_index(int(both.argmax()), both.shape)
        center, reach = np.array([near[0][i], near[1][k]]), reach / 2.5
    log_s_min = float((fine[:, i, k] * a[:, i, k]).sum() / both[i, k])
    return log_s_min, float(center[0]), float(center[1])


def _evaluate(summaries: Sequence[Summary], log_b: Floats, log_shape: Floats) -> tuple[Floats, Floats, Floats]:
    """(log weight, mean and variance of log S_min) at each node [sigma, B_crit, shape, tau]."""
    parts = [_evaluate_one(summary, log_b, log_shape) for summary in summaries]
    prior = -0.5 * (log_shape / _SHAPE_SPREAD) ** 2
    # Nodes of tau are even in its logarithm, hence the factor tau.
    tau_prior = np.log(_TAUS) - np.log1p((_TAUS / _TAU_SCALE) ** 2)
    log_weight = np.stack([part[0] + np.log(s.weight) for part, s in zip(parts, summaries, strict=True)])
    return (
        log_weight + prior[:, None] + tau_prior, np.stack([part[1] for part in parts]), np.stack([part[2] for part in parts])
    )  # fmt: skip


def _evaluate_one(summary: Summary, log_b: Floats, log_shape: Floats) -> tuple[Floats, Floats, Floats]:
    growth = log_growth(summary.log_batch[:, None, None] - log_b[:, None], log_shape)  # [batch size, B_crit, shape]
    w = 1 / (summary.variance[:, None] + _TAUS**2)  # [batch size, tau]
    total = w.sum(0)
    offset = summary.mean[:, None, None] - growth
    flat = offset.reshape(len(offset), -1)
    mean = flat.T @ w / total  # of log S_min [nodes, tau]
    square = (flat**2).T @ w - total * mean**2
    log_weight = 0.5 * (np.log(w).sum(0) - np.log(total)) - 0.5 * square
    shape = (len(log_b), len(log_shape), len(_TAUS))
    log_weight, mean = log_weight.reshape(shape), mean.reshape(shape)
    variance = np.broadcast_to(1 / total, shape)
    for log_size, ends in summary.missed:
        expected = mean + log_growth(log_size - log_b[:, None], log_shape)[:, :, None]
        log_weight = log_weight + _log_missed(expected, variance + _TAUS**2, ends, max(summary.sigma, 0.02))
    return log_weight, mean, variance


def _log_missed(expected: Floats, variance: Floats, ends: Floats, sigma: float) -> Floats:
    """log of the probability that all runs of a batch size need more than their ``ends``, whose location is uncertain."""
    nodes, weights = _HERMITE
    location = expected[..., None] + np.sqrt(variance)[..., None] * nodes
    values, counts = np.unique(ends, return_counts=True)  # runs often end at the same budget
    chance = sum(count * log_ndtr((location - end) / sigma) for end, count in zip(values, counts, strict=True))
    return np.asarray(np.log((1 - _OTHER_CAUSE) * (np.exp(chance) @ (weights / weights.sum())) + _OTHER_CAUSE))


def _narrowed(nodes: Floats, density: Floats) -> tuple[float, float]:
    """The part of a grid that holds all of the density that matters, with a node to each side."""
    held = np.flatnonzero(density > 1e-5 * density.max())
    return float(nodes[max(0, held[0] - 1)]), float(nodes[min(len(nodes) - 1, held[-1] + 1)])


def _draw(weight: Floats, log_b: Floats, log_shape: Floats, a: Floats, a_variance: Floats) -> Floats:
    random = np.random.default_rng(0)
    cumulative = np.cumsum(weight.ravel())
    chosen = np.searchsorted(cumulative, (np.arange(_DRAWS) + 0.5) / _DRAWS * cumulative[-1])
    at = np.unravel_index(chosen, weight.shape)
    log_s_min = a[at] + np.sqrt(a_variance[at]) * random.standard_normal(_DRAWS)
    # Within a cell of the grid every value is as likely.
    jitter = random.uniform(-0.5, 0.5, (2, _DRAWS)) * np.array([[log_b[1] - log_b[0]], [log_shape[1] - log_shape[0]]])
    return np.stack([log_s_min, log_b[at[1]] + jitter[0], log_shape[at[2]] + jitter[1], _TAUS[at[3]]], 1)
