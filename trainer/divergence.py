"""Divergence detection on a smoothed loss. Light imports only."""

from __future__ import annotations

import math
from collections.abc import Sequence

DECAY = 0.9  # of the moving average at each value: it looks back over about ten


class DivergenceDetector:
    """Detects divergence from an exponential moving average of the losses with bias correction, as in Adam.

    Args:
        factor: the run has diverged where the average is this many times its lowest value; None: never.
    """

    def __init__(self, factor: float | None = None) -> None:
        self.factor = factor
        self.mean, self.weight, self.lowest = 0.0, 0.0, math.inf

    def add(self, loss: float) -> float:
        """Take a loss; returns the average with it."""
        self.mean = DECAY * self.mean + (1 - DECAY) * loss
        self.weight = DECAY * self.weight + (1 - DECAY)
        return self.mean / self.weight

    def diverged(self, loss: float) -> bool:
        """Take a loss; returns whether the average is now above `factor` times its lowest value, or not finite."""
        if self.factor is None:
            return False
        smooth = self.add(loss)
        self.lowest = min(self.lowest, smooth)
        return not math.isfinite(smooth) or smooth > self.factor * self.lowest


def smoothed(losses: Sequence[float]) -> list[float]:
    """The moving average after each loss.

    >>> [round(x, 3) for x in smoothed([2.0, 2.0, 1.0])]
    [2.0, 2.0, 1.631]
    """
    average = DivergenceDetector()
    return [average.add(loss) for loss in losses]
