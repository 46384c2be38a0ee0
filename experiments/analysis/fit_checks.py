"""Checks of a fit: whether its curve describes the runs, and how far it depends on single batch sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bellwether.experiments.analysis.batch_summaries import Runs
from bellwether.experiments.analysis.critical_batch import Fit, refit
from bellwether.experiments.analysis.growth import Floats

_SIGNIFICANT = 0.01
_BEYOND = 3.0  # standard deviations


@dataclass(frozen=True)
class Deviation:
    """A batch size against the curve of all others."""

    batch: float
    factor: float  #: measured samples over expected ones
    beyond: bool  #: by more than the seeds and the uncertainty of the curve explain


@dataclass(frozen=True)
class LackOfFit:
    """The F test of samples = S_min (1 + B / B_crit): deviations of the batch sizes from the curve against those of the seeds."""

    f: float
    p: float


@dataclass(frozen=True)
class Halves:
    """The larger half of the batch sizes as the smaller half predicts it, at the largest of them."""

    batch: float
    expected: float
    low: float  #: of the 90 % interval
    high: float
    measured: float

    @property
    def holds(self) -> bool:
        return self.low <= self.measured <= self.high


@dataclass(frozen=True)
class Checks:
    """Results; None: too few batch sizes or seeds for this check."""

    lack_of_fit: LackOfFit | None = None
    deviations: list[Deviation] = field(default_factory=list)
    left_out: tuple[float, float] | None = (
        None  #: least and largest B_crit when one batch size is left out; inf: unbounded
    )
    halves: Halves | None = None

    @property
    def warnings(self) -> list[str]:
        found = []
        if self.lack_of_fit is not None and self.lack_of_fit.p < _SIGNIFICANT:
            found.append(
                f"samples = S_min (1 + B / B_crit) does not fit: batch sizes deviate from it by more than their seeds (F = "
                f"{self.lack_of_fit.f:.3g}, p {'< 0.001' if self.lack_of_fit.p < 1e-3 else f'= {self.lack_of_fit.p:.2g}'}); the "
                "interval allows for that, and for another knee"
            )
        beyond = [each for each in self.deviations if each.beyond]
        if beyond:
            names = ", ".join(f"{each.batch:,.0f} ({100 * (each.factor - 1):+.0f} %)" for each in beyond)
            found.append(f"beyond the noise, against the curve of all others: batch {names}")
        if self.halves is not None and not self.halves.holds:
            h = self.halves
            found.append(
                f"the smaller half of the batch sizes predicts {h.expected:,.0f} samples at batch {h.batch:,.0f} ({h.low:,.0f} to "
                f"{h.high:,.0f}), measured were {h.measured:,.0f}: do not extrapolate"
            )
        return found

    def json(self) -> dict[str, Any]:
        def finite(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "lack_of_fit": None if self.lack_of_fit is None else vars(self.lack_of_fit),
            "deviations": [vars(each) for each in self.deviations],
            "left_out": None if self.left_out is None else [finite(end) for end in self.left_out],
            "larger_half": None if self.halves is None else {**vars(self.halves), "holds": self.halves.holds},
        }


def check(fit: Fit) -> Checks:
    """Run all checks that the number of batch sizes and seeds allows. Takes about as many fits as there are batch sizes."""
    runs = fit.used
    if runs is None:
        return Checks()
    sizes = np.unique(runs.batch[runs.reached])
    if sizes.size < 4:
        return Checks(_lack_of_fit(runs, sizes))
    seed_noise = _seed_noise(runs, sizes)
    deviations, found = [], []
    for size in sizes:
        own = runs.batch == size
        others = refit(runs.without(own))
        found.append(others.b_crit)
        deviations.append(_deviation(others, runs, size, seed_noise))
    smaller = sizes[: max(3, math.ceil(sizes.size / 2))]
    halves = None
    if sizes.size > smaller.size:
        halves = _predict(refit(runs.without(runs.batch > smaller[-1])), runs, float(sizes[-1]), seed_noise)
    return Checks(_lack_of_fit(runs, sizes), deviations, (min(found), max(found)), halves)


def _measured(runs: Runs, size: float) -> Floats:
    return np.log(runs.samples[(runs.batch == size) & runs.reached])


def _seed_noise(runs: Runs, sizes: Floats) -> float:
    """Standard deviation of the logarithm between seeds; 0: no batch size has two."""
    groups = [_measured(runs, size) for size in sizes]
    degrees = sum(len(group) - 1 for group in groups)
    return (
        math.sqrt(sum(float(np.square(group - group.mean()).sum()) for group in groups) / degrees) if degrees else 0.0
    )


def _deviation(others: Fit, runs: Runs, size: float, noise: float) -> Deviation:
    log = _measured(runs, size)
    curves = np.log(others.random_curves(np.array([size]))[:, 0])
    # With single seeds the deviation of the other batch sizes from their curve is the only measure of noise.
    own = noise**2 / len(log) if noise else float(np.median(others.draws[:, 3])) ** 2
    distance = float(log.mean()) - float(np.median(curves))
    # The curve's own uncertainty has wide tails where few batch sizes determine it.
    low, high = np.quantile(curves, [0.16, 0.84])
    deviation = math.sqrt(own + ((high - low) / 2) ** 2)
    return Deviation(float(size), math.exp(distance), abs(distance) > _BEYOND * deviation)


def _predict(half: Fit, runs: Runs, size: float, noise: float) -> Halves:
    log = _measured(runs, size)
    random = np.random.default_rng(0)
    expected = np.log(half.random_curves(np.array([size]))[:, 0])
    shifts = np.sqrt(half.draws[:, 3] ** 2 + noise**2 / len(log))
    low, high = np.exp(np.quantile(expected + shifts * random.standard_normal(len(shifts)), [0.05, 0.95]))
    return Halves(size, half.samples(size), float(low), float(high), math.exp(float(log.mean())))


def _lack_of_fit(runs: Runs, sizes: Floats) -> LackOfFit | None:
    from scipy.optimize import least_squares
    from scipy.stats import f as f_distribution

    b, log = runs.batch[runs.reached], np.log(runs.samples[runs.reached])
    free, pure = sizes.size - 2, b.size - sizes.size
    if free < 1 or pure < 1:
        return None
    unit = b.max()
    start = [log.min(), 0.0]
    line = least_squares(
        lambda p: log - p[0] - np.log1p(np.exp(p[1]) * b / unit), start, bounds=([-np.inf, -30], np.inf)
    )
    within = sum(float(np.square(group - group.mean()).sum()) for group in (log[b == size] for size in sizes))
    between = max(0.0, 2 * float(line.cost) - within)
    if within <= 1e-18 * b.size:
        return None
    ratio = (between / free) / (within / pure)
    return LackOfFit(ratio, float(f_distribution.sf(ratio, free, pure)))
