"""The arithmetic of measured times: medians and ranges, ratios that a range allows, MFU, idle time of a device, agreement of losses."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median, least and largest of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """
        >>> Spread.of([3.0, 1.0, 2.0, 10.0])
        Spread(median=2.5, low=1.0, high=10.0)
        """
        return cls(statistics.median(values), min(values), max(values))

    def overlaps(self, other: Spread) -> bool:
        """
        >>> Spread(2, 1, 3).overlaps(Spread(4, 3, 5)), Spread(2, 1, 3).overlaps(Spread(4.5, 3.1, 5))
        (True, False)
        """
        return self.low <= other.high and other.low <= self.high

    def ratio(self, other: Spread) -> float | None:
        """This median over the other's; None where the ranges overlap, because then the order may be chance.

        >>> Spread(6, 5, 7).ratio(Spread(3, 2, 4)), Spread(6, 4, 7).ratio(Spread(3, 2, 4))
        (2.0, None)
        """
        return None if self.overlaps(other) else self.median / other.median

    def text(self, digits: int = 3) -> str:
        """
        >>> Spread(1234.5, 1000, 2000).text()
        '1,230 (1,000 to 2,000)'
        """
        return f"{rounded(self.median, digits)} ({rounded(self.low, digits)} to {rounded(self.high, digits)})"


def rounded(value: float, digits: int = 3) -> str:
    """A number with this many significant digits, without an exponent.

    >>> rounded(0.012345), rounded(1234567.0), rounded(-2.0), rounded(0.0)
    ('0.0123', '1,230,000', '-2', '0')
    """
    whole = float(f"{value:.{digits}g}")
    if whole == int(whole):
        return f"{int(whole):,}"
    return f"{whole:,.10f}".rstrip("0")


def mfu(flops_per_sample: float, samples_per_second: float, peak: float) -> float:
    """Model FLOPs utilization (Chowdhery et al. 2022, 2204.02311): the FLOP/s that the model needs, over the device's peak.

    >>> mfu(2e12, 100, 1e15)
    0.2
    """
    return flops_per_sample * samples_per_second / peak


def bert_flops(layers: int, hidden: int, length: int, masked: int, vocabulary: int) -> float:
    """FLOPs of the matrix products of a forward and backward pass of one sample, with the logits of masked positions alone.

    A layer has 12 hidden^2 weights in matrices, the head hidden^2 + hidden x vocabulary; a weight costs 2 FLOPs forward and 4
    backward for each position. The two products of attention cost 4 x hidden x length^2 forward, and twice that backward.
    """
    layer = 6 * 12 * hidden**2 * length + 12 * hidden * length**2
    return float(layers * layer + 6 * (hidden**2 + hidden * vocabulary) * masked)


def idle_share(intervals: Iterable[tuple[float, float]]) -> float:
    """The share of the time from the first start to the last end in which no interval is open.

    >>> idle_share([(0, 2), (1, 3), (6, 8)])
    0.375
    """
    ordered = sorted(intervals)
    if not ordered:
        return 1.0
    busy, reached = 0.0, ordered[0][0]
    for start, end in ordered:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    whole = reached - ordered[0][0]
    return 1 - busy / whole if whole else 0.0


def largest_difference(losses: Sequence[float], expected: Sequence[float]) -> float:
    """The largest relative difference of two curves of losses, step by step.

    >>> largest_difference([2.0, 1.1], [2.0, 1.0])
    0.10000000000000009

    Raises:
        ValueError: if they have not the same number of steps.
    """
    if len(losses) != len(expected):
        raise ValueError(f"{len(losses)} losses cannot be compared with {len(expected)}")
    return max((abs(a - b) / max(abs(b), 1e-12) if a == a and b == b else float("inf"))
               for a, b in zip(losses, expected, strict=True))  # fmt: skip
