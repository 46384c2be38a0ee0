"""Runs as they are read from a file: batch size, samples, and whether the target was reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bellwether.experiments.analysis import critical_batch


@dataclass(frozen=True)
class Points:
    """Runs of one workload, by batch size."""

    batches: list[float]  #: batch size of each run
    samples: list[float]  #: to the target; of a run that missed it, those that it was trained on
    reached: list[bool] = field(default_factory=list)  #: whether each run reached the target; empty: all did
    width: list[float] = field(default_factory=list)  #: samples between two evaluations of each run; empty: unknown
    left_out: int = 0  #: number of runs that missed the target after an unknown number of samples
    workload: str = ""  #: its name, if the file tells: the benchmark, or model and dataset

    @property
    def missed(self) -> int:
        """Number of runs that did not reach the target."""
        return self.reached.count(False) + self.left_out

    def fit(self) -> critical_batch.Fit:
        """See `critical_batch.fit`."""
        return critical_batch.fit(self.batches, self.samples, self.reached or None, self.width or None)


def spacing(values: Sequence[float]) -> float:
    """The distance of the evaluations of runs that ended at these values; 0 if the values are not evenly spaced."""
    steps = np.diff(np.unique(values))
    if not steps.size:
        return 0.0
    shares = steps / steps.min()
    return float(steps.min()) if np.allclose(shares, np.round(shares), atol=0.01) else 0.0
