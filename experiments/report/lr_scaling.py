"""How the best learning rate moves with the batch: ``lr = c B^p``, with an error, and a word where the search was too narrow."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bellwether.experiments.analysis.aggregate import Cell, peak_lr

# Quantiles of Student's t at 0.95 for 1, 2, ... degrees of freedom; the last stands for all beyond.
_T = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83, 1.81)


@dataclass(frozen=True)
class Law:
    """The best learning rates of one optimizer, and the power of the batch through them."""

    batches: Sequence[int]
    lrs: Sequence[float]
    exponent: float | None  #: None: fewer than two batches
    error: float | None  #: standard error; None: two batches, or fewer
    interval: tuple[float, float] | None  #: that holds 9 times out of 10
    scale: float  #: lr at batch 1
    edges: Sequence[tuple[int, str]]  #: (batch, "lowest" or "highest") where the best lies at an end of those tried

    def __call__(self, batch: float) -> float:
        return self.scale * batch ** (self.exponent or 0.0)

    @property
    def notes(self) -> list[str]:
        said = []
        for end, beyond in (("lowest", "lower"), ("highest", "higher")):
            where = [f"{batch:,}" for batch, edge in self.edges if edge == end]
            if where:
                said.append(
                    f"the best lr is the {end} that was tried at batch {', '.join(where)}: search {beyond} ones"
                )
        if self.exponent is not None and self.interval is None:
            said.append("two batches leave nothing to tell the exponent's error by")
        return said


def power(exponent: float) -> str:
    """
    >>> power(0.5), power(-0.004)
    ('0.50', '0.00')
    """
    return f"{round(exponent, 2) + 0.0:.2f}"  # -0.0 + 0.0 is 0.0


def law(found: Sequence[Cell]) -> Law | None:
    """A straight line through the logarithms of the best lr of each cell; None where the sweep set no lr.

    The error is the larger of what the points scatter by and of what the search leaves open: the best lr is known to its
    neighbours only, so that points which happen to lie on a line of grid values do not look certain.
    """
    cells = [cell for cell in found if peak_lr(cell.best) is not None]
    if not cells or max(len(cell.lrs) for cell in cells) < 2:
        return None
    batches = [cell.batch for cell in cells]
    lrs = [peak_lr(cell.best) or math.nan for cell in cells]
    edges = [(cell.batch, cell.lr_edge) for cell in cells if cell.lr_edge is not None]
    if len(batches) < 2:
        return Law(batches, lrs, None, None, None, lrs[0], edges)
    x, y = np.log(batches), np.log(lrs)
    exponent, start = np.polyfit(x, y, 1)
    error, interval = None, None
    if len(batches) > 2:
        freedom = len(batches) - 2
        scatter = math.sqrt(float(np.sum((y - start - exponent * x) ** 2)) / freedom)
        gaps = [math.log(b / a) for cell in cells for a, b in pairwise(cell.lrs)]
        open_ = statistics.median(gaps) / math.sqrt(12)  # of a value anywhere within a step
        error = max(scatter, open_) / math.sqrt(float(np.sum((x - x.mean()) ** 2)))
        half = _T[min(freedom, len(_T)) - 1] * error
        interval = (float(exponent) - half, float(exponent) + half)
    return Law(batches, lrs, float(exponent), error, interval, float(np.exp(start)), edges)
