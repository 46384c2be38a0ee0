"""The course of a noisy loss, and whether it has left the track. No heavy import."""

from __future__ import annotations

import math
from collections.abc import Sequence

KEEP = 0.9  # of the mean so far at each value: a memory of ten


class DivergenceDetector:
    """A mean of the losses so far that forgets the old ones, without the bias of where it began (as Adam's moments).

    Args:
        times: its lowest, at which it has diverged; None: never.
    """

    def __init__(self, times: float | None = None) -> None:
        self.times = times
        self.mean, self.weight, self.lowest = 0.0, 0.0, math.inf

    def add(self, loss: float) -> float:
        """Take a loss; returns the mean with it."""
        self.mean = KEEP * self.mean + (1 - KEEP) * loss
        self.weight = KEEP * self.weight + (1 - KEEP)
        return self.mean / self.weight

    def diverged(self, loss: float) -> bool:
        """Take a loss, and tell whether the mean is now too many times its lowest, or no number."""
        if self.times is None:
            return False
        smooth = self.add(loss)
        self.lowest = min(self.lowest, smooth)
        return not math.isfinite(smooth) or smooth > self.times * self.lowest


def smoothed(losses: Sequence[float]) -> list[float]:
    """
    >>> [round(x, 3) for x in smoothed([2.0, 2.0, 1.0])]
    [2.0, 2.0, 1.631]
    """
    course = DivergenceDetector()
    return [course.add(loss) for loss in losses]
