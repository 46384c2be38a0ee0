"""The best evaluation of a run by one score: its checkpoint is kept and exported, and training stops when no better one comes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bellwether.trainer.scores import LOWER_IS_BETTER


@dataclass
class BestEvaluation:
    """The best evaluation so far. The same on all ranks.

    Attributes:
        score: ``loss``, ``accuracy``, or a name of `bellwether.trainer.scores`.
        value, step: of the best evaluation; -1: there is none yet.
        since: evaluations after it.
    """

    score: str
    value: float = math.nan
    step: int = -1
    since: int = 0

    def update(self, step: int, evaluation: Mapping[str, float]) -> bool:
        """Take the results of an evaluation; returns whether it is the best one. A missing score or NaN is none.

        >>> best = BestEvaluation("f1")
        >>> [best.update(step, {"f1": value}) for step, value in ((10, 0.5), (20, 0.4), (30, 0.6))], best.step, best.since
        ([True, False, True], 30, 0)
        """
        value = evaluation.get(self.score, math.nan)
        is_better = value < self.value if self.score in LOWER_IS_BETTER else value > self.value
        if is_better or (self.step < 0 and not math.isnan(value)):
            self.value, self.step, self.since = value, step, 0
            return True
        self.since += 1
        return False

    def replay(self, evaluations: Iterable[Mapping[str, Any]]) -> None:
        """Take earlier evaluations, as lines of the metrics."""
        for line in evaluations:
            self.update(line["step"], line)
