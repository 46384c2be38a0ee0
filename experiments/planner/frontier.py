"""Time and cost of reaching a target on n GPUs at batch size B: a fitted curve of samples joined with the time of a step.

Hours are samples to the target over samples per second. Their 90 % interval holds the uncertainty of the curve, the deviation of a batch
size from it (`posterior`), and the error of a computed step time, which docs/results/planner.md measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bellwether.experiments.analysis.critical_batch import Fit
from bellwether.experiments.analysis.growth import Floats

_LEVEL = 0.9
_SMALL, _LARGE = (
    0.08,
    0.16,
)  # deviation of log(step time): 15 % and 30 % are about its 90 % intervals, below 100 GPUs and beyond
_MANY = 100

StepSeconds = Callable[[int, int], float | None]  # of (GPUs, batch size); None: cannot be split


@dataclass(frozen=True)
class Span:
    """An estimate and its 90 % interval."""

    middle: float
    low: float
    high: float

    def times(self, factor: float) -> Span:
        return Span(self.middle * factor, self.low * factor, self.high * factor)

    @classmethod
    def of(cls, draws: Floats) -> Span:
        low, middle, high = np.quantile(draws, [(1 - _LEVEL) / 2, 0.5, (1 + _LEVEL) / 2])
        return cls(float(middle), float(low), float(high))


@dataclass(frozen=True)
class Option:
    """A way to reach the target."""

    gpus: int
    batch: int
    step: float  #: seconds
    samples: Span  #: to the target
    hours: Span
    gpu_hours: Span
    cost: Span | None  #: None: no price is known

    @property
    def expense(self) -> float:
        """What to compare options by: cost, or GPU hours without a price."""
        return (self.cost or self.gpu_hours).middle


def options(
    fit: Fit, step_seconds: StepSeconds, gpus: Iterable[int], batches: Iterable[int], price: float | None
) -> list[Option]:
    """All pairs of a number of GPUs and a batch size that can be run.

    Args:
        fit: with random curves; batch sizes beyond its largest measured one are left out.
        price: of a GPU hour.
    """
    assert fit.used is not None
    largest = float(fit.used.batch[fit.used.reached].max())
    random = np.random.default_rng(0)
    tau, speed = random.standard_normal((2, len(fit.draws)))
    found = []
    for batch in sorted(b for b in set(batches) if b <= largest):
        samples = fit.random_curves(np.array([batch], dtype=np.float64))[:, 0] * np.exp(fit.draws[:, 3] * tau)
        for n in gpus:
            seconds = step_seconds(n, batch)
            if seconds is None:
                continue
            draws = samples / batch * seconds / 3600 * np.exp((_SMALL if n < _MANY else _LARGE) * speed)
            hours = Span.of(draws)
            cost = None if price is None else hours.times(n * price)
            found.append(Option(n, batch, seconds, Span.of(samples), hours, hours.times(n), cost))
    return found


def best_batch(found: Iterable[Option]) -> list[Option]:
    """The fastest option of each number of GPUs, in ascending order."""
    fastest: dict[int, Option] = {}
    for option in sorted(found, key=lambda option: option.hours.middle):
        fastest.setdefault(option.gpus, option)
    return [fastest[n] for n in sorted(fastest)]


def front(found: Iterable[Option]) -> list[Option]:
    """The Pareto front, the slowest and cheapest first: no other option is both faster and cheaper."""
    kept: list[Option] = []
    for option in sorted(found, key=lambda option: (option.hours.middle, option.expense)):
        if not kept or option.expense < kept[-1].expense:
            kept.append(option)
    return kept[::-1]


def by_deadline(found: Sequence[Option], hours: float) -> Option | None:
    """The cheapest option that is done in time with a probability of 95 %; None: there is none."""
    return min((o for o in found if o.hours.high <= hours), key=lambda o: (o.expense, o.hours.middle), default=None)


def within_budget(found: Sequence[Option], budget: float) -> Option | None:
    """The fastest option that stays within a budget of cost, or of GPU hours, with a probability of 95 %; None: there is none."""
    return min((o for o in found if (o.cost or o.gpu_hours).high <= budget), key=lambda o: o.hours.middle, default=None)


def limit(front_: Sequence[Option]) -> Option:
    """The last option of the front before twice the money saves less than a quarter of the time."""
    last = front_[0]
    for option in front_[1:]:
        gain = math.log(last.hours.middle / option.hours.middle)
        price = math.log(option.expense / last.expense)
        if price > 0 and gain / price < math.log(1 / 0.75) / math.log(2):
            break
        last = option
    return last


def batch_sizes(fit: Fit, micro: int) -> list[int]:
    """Batch sizes to consider: those that were measured, and powers of two between them."""
    assert fit.used is not None
    measured = {int(b) for b in fit.used.batch[fit.used.reached]}
    low, high = min(measured), max(measured)
    return sorted(
        measured
        | {2**n for n in range(64) if low <= 2**n <= high}
        | {micro * 2**n for n in range(64) if low <= micro * 2**n <= high}
    )
