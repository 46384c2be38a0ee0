"""Scaling of the best learning rate with the batch size: ``lr = c B^p``, with an error, and notes on searches too narrow."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from bellwether.experiments.analysis.aggregate import Cell, peak_lr
from bellwether.trainer.report.facts import ABSENT

# Quantiles of Student's t at 0.95 for 1, 2, ... degrees of freedom; the last is used for more.
_T = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83, 1.81)


@dataclass(frozen=True)
class Law:
    """The best learning rates of one optimizer, and the power of the batch size fitted to them."""

    lrs: Mapping[int, float]  #: the best by batch size
    edges: Sequence[tuple[int, str]]  #: (batch, "lowest" or "highest") where the best is at an end of what was tried
    scale: float  #: lr at batch size 1
    exponent: float | None = None  #: None: fewer than two batches
    error: float | None = None  #: standard error; None: two batches, or fewer

    def __call__(self, batch: Any) -> Any:
        return self.scale * batch ** (self.exponent or 0.0)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Confidence interval of the exponent, 90 %."""
        if self.exponent is None or self.error is None:
            return None
        half = _T[min(len(self.lrs) - 2, len(_T)) - 1] * self.error
        return self.exponent - half, self.exponent + half

    @property
    def notes(self) -> list[str]:
        found = []
        for end, beyond in (("lowest", "lower"), ("highest", "higher")):
            where = [f"{batch:,}" for batch, edge in self.edges if edge == end]
            if where:
                found.append(
                    f"the best lr is the {end} that was tried at batch {', '.join(where)}: search {beyond} ones"
                )
        if self.exponent is not None and self.interval is None:
            found.append("an exponent from two batches has no error estimate")
        return found


def power(exponent: float | None) -> str:
    """
    >>> power(0.5), power(-0.004), power(None)
    ('0.50', '0.00', '–')
    """
    return ABSENT if exponent is None else f"{round(exponent, 2) + 0.0:.2f}"  # -0.0 + 0.0 is 0.0


def law(found: Sequence[Cell]) -> Law | None:
    """Fit a line to the logarithms of the best lr of each cell; None if the sweep set no lr.

    The error is the larger of the scatter of the points and the resolution of the search: the best lr is known only up to
    its neighbours, so points that happen to lie on a line of grid values do not look certain.
    """
    cells = [cell for cell in found if peak_lr(cell.best) is not None]
    if not cells or max(len(cell.lrs) for cell in cells) < 2:
        return None
    lrs = {cell.batch: peak_lr(cell.best) or math.nan for cell in cells}
    edges = [(cell.batch, cell.lr_edge) for cell in cells if cell.lr_edge is not None]
    x, y = np.log(list(lrs)), np.log(list(lrs.values()))
    if len(lrs) < 2:
        return Law(lrs, edges, float(np.exp(y[0])))
    exponent, start = np.polyfit(x, y, 1)
    error = None
    if len(lrs) > 2:
        scatter = math.sqrt(float(np.sum((y - start - exponent * x) ** 2)) / (len(lrs) - 2))
        gaps = [math.log(b / a) for cell in cells for a, b in pairwise(cell.lrs)]
        resolution = statistics.median(gaps) / math.sqrt(12)  # standard deviation of a value anywhere within a step
        error = max(scatter, resolution) / math.sqrt(float(np.sum((x - x.mean()) ** 2)))
    return Law(lrs, edges, float(np.exp(start)), float(exponent), error)
