"""Finds single values that cannot be measurements: several times off from all others, like a digit too many in a table."""

from __future__ import annotations

import numpy as np

from bellwether.experiments.analysis.batch_summaries import Runs, summarize
from bellwether.experiments.analysis.growth import log_growth
from bellwether.experiments.analysis.posterior import posterior

_RUN_FACTOR, _BATCH_FACTOR = 2.5, 4.0
_DEVIATIONS = 8.0  # robust ones, of the seeds


def remove(runs: Runs) -> tuple[Runs, list[str]]:
    """Leave out runs far off from the other seeds of their batch size, and a single batch size far off from the curve of all others.

    Returns:
        the other runs, and a warning for each run or batch size that was left out.
    """
    log, found = np.log(runs.samples), np.zeros(len(runs.batch), dtype=bool)
    sizes = np.unique(runs.batch[runs.reached])
    residual = np.zeros(len(runs.batch))
    for size in sizes:
        group = (runs.batch == size) & runs.reached
        if group.sum() >= 3:
            residual[group] = log[group] - np.median(log[group])
    usual = 1.4826 * np.median(np.abs(residual[residual != 0])) if residual.any() else 0.0
    found = np.abs(residual) > max(np.log(_RUN_FACTOR), _DEVIATIONS * float(usual))
    warnings = [
        f"a run at batch {runs.batch[i]:,.0f} with {runs.samples[i]:,.0f} samples is {np.exp(abs(residual[i])):.1f} times off "
        "from the others there: left out, as it looks like a typing error"
        for i in np.flatnonzero(found)
    ]
    runs = runs.without(found)
    if sizes.size < 5 or found.any():
        return runs, warnings
    # Only where the curve of all is bad can a batch size be so far off.
    off = [(*_distance(runs, size), size) for size in _suspects(runs, sizes)]
    off = [each for each in off if each[0] > np.log(_BATCH_FACTOR) and each[0] > 4 * each[1]]
    if len(off) == 1:
        distance, _, size = off[0]
        warnings.append(
            f"batch {size:,.0f} is {np.exp(distance):.1f} times off from the curve of all others: left out, as it looks like "
            "a typing error"
        )
        runs = runs.without(runs.batch == size)
    return runs, warnings


def _suspects(runs: Runs, sizes: np.ndarray) -> list[float]:
    """Batch sizes that are far off from both neighbours, in the same direction; an outermost one from its only neighbour."""
    log = np.array([np.median(np.log(runs.samples[(runs.batch == size) & runs.reached])) for size in sizes])
    limit = 0.7 * np.log(_BATCH_FACTOR)
    suspects = []
    for i, size in enumerate(sizes):
        steps = [log[i] - log[j] for j in (i - 1, i + 1) if 0 <= j < len(sizes)]
        if all(abs(step) > limit for step in steps) and len({step > 0 for step in steps}) == 1:
            suspects.append(float(size))
    return suspects


def _distance(runs: Runs, size: float) -> tuple[float, float]:
    """(|log| of the batch size's samples over those on the curve of all others, deviation of that curve)."""
    own = runs.batch == size
    curve = posterior(summarize(runs.without(own)), 0.9)
    a, b, shape, tau = curve.draws.T
    expected = a + log_growth(np.log(size) - b, shape)
    measured = float(np.median(np.log(runs.samples[own & runs.reached])))
    return abs(measured - float(np.median(expected))), float(np.sqrt(expected.var() + np.median(tau) ** 2))
