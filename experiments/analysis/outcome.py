"""One trial judged against a target: the steps it took, and how it ended."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from bellwether.experiments.sweep.measurements import Measurement, Status, Target, Trial
from bellwether.trainer.config import Duration

Verdict = Literal["reached", "missed", "ended early", "complete", "pruned", "diverged", "failed", "unfinished"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class EarlyStop:
    """The target at which a sweep stopped its trials."""

    target: Target
    budgets: Mapping[str, Duration]  #: duration of an optimizer's trials, by name; optimizers may be missing

    def __str__(self) -> str:
        return str(self.target)

    def stopped(self, trial: Trial) -> bool:
        """Whether a trial was stopped at the target before its budget was spent; true where the budget is unknown."""
        if self.target.reached(trial) is None:
            return False
        budget = self.budgets.get(trial.optimizer)
        if budget is None or (budget.unit == "epochs" and trial.epoch is None):
            return True
        samples = budget.samples(trial.batch_size, trial.epoch or 0)
        return trial.measurements[-1]["step"] < math.ceil(samples / trial.batch_size)


@dataclass(frozen=True)
class Outcome:
    """A trial and what it achieved with respect to a target."""

    trial: Trial
    steps: float  #: to the target; inf: not reached
    samples: float  #: to the target; inf: not reached
    best: float | None  #: best value of the target's metric; None: no finite value was measured
    has_target: bool  #: false: trials are only compared by a metric
    stopped_early: bool  #: by the sweep, at the sweep's own target
    evaluation_width: float = 0.0  #: samples between the evaluation that reached the target and the one before it

    @property
    def verdict(self) -> Verdict:
        """``reached`` whatever happened later; else how the trial ended, ``missed`` if it used up its budget."""
        if math.isfinite(self.steps):
            return "reached"
        status: Status = self.trial.status
        if status != "complete" or not self.has_target:
            return status
        return "ended early" if self.stopped_early else "missed"

    @property
    def is_valid(self) -> bool:
        """Whether the trial is evidence about its setting: it reached the target, or ran long enough to miss it."""
        return self.verdict not in ("failed", "unfinished", "ended early")

    @property
    def reached_target(self) -> bool:
        return math.isfinite(self.steps)

    @property
    def trained_samples(self) -> float:
        """Samples to the target; of a trial that missed it, all that it was trained on."""
        if self.reached_target:
            return self.samples
        return self.trial.measurements[-1]["samples"] if self.trial.measurements else 0.0

    @property
    def last_step(self) -> float:
        """Step of the last measurement."""
        return self.trial.measurements[-1]["step"] if self.trial.measurements else 0


def judge(trial: Trial, target: Target, early_stop: EarlyStop | None = None) -> Outcome:
    """Compare a trial with a target.

    Args:
        early_stop: where the sweep stopped its trials; None: only at the end of their budget.
    """
    reached: Measurement | None = target.reached(trial)
    steps, samples = (reached["step"], reached["samples"]) if reached else (math.inf, math.inf)
    stopped_early = early_stop is not None and early_stop.stopped(trial)
    width = 0.0
    if reached is not None:
        earlier = [m["samples"] for m in trial.measurements if target.metric in m and m["samples"] < samples]
        width = samples - max(earlier, default=0.0)
    return Outcome(trial, steps, samples, target.best(trial), math.isfinite(target.value), stopped_early, width)


def count_verdicts(runs: Iterable[Outcome], without: Sequence[str] = ()) -> str:
    """The number of runs by verdict as text, as in ``2 reached, 1 diverged``."""
    counts = Counter(run.verdict for run in runs)
    return ", ".join(
        f"{counts[verdict]:,} {verdict}" for verdict in VERDICTS if counts[verdict] and verdict not in without
    )
