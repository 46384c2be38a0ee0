"""What the trials of a sweep say together: a setting over its seeds, and the best setting of each optimizer at each batch.

A *setting* is what the sweep set, apart from the seed; a *cell* is all settings of one optimizer at one batch. Steps and
samples to the target are medians over the seeds, in which a seed that ran and missed counts as infinitely many: no setting
looks good because the runs that missed are left out. Runs that ended in an error, have not ended, or were ended by the
sweep at a target of its own, say nothing about a setting, unless they had reached the target before; they are counted apart.
The best setting of a cell is the one with the least median, among those that were run on the most seeds.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from bellwether.experiments.sweep.measurements import Measurement, Status, Target, Trial, Value
from bellwether.trainer.config import ConfigError, Duration

Verdict = Literal["reached", "missed", "ended early", "complete", "pruned", "diverged", "failed", "unfinished"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
LR = "optimizer.lr"

_KNOWN = (("val/accuracy", True), ("val/loss", False))


@dataclass(frozen=True)
class EarlyStop:
    """Where a sweep ends its runs."""

    target: Target
    budgets: Mapping[str, Duration]  #: of an optimizer's runs, where one is known

    def __str__(self) -> str:
        return str(self.target)

    def early(self, trial: Trial) -> bool:
        """Whether a run was ended at the target, with steps of its budget left, as far as can be known."""
        if self.target.reached(trial) is None:
            return False
        budget = self.budgets.get(trial.optimizer)
        if budget is None or (budget.unit == "epochs" and trial.epoch is None):
            return True
        samples = budget.samples(trial.batch_size, trial.epoch or 0)
        return trial.measurements[-1]["step"] < math.ceil(samples / trial.batch_size)


@dataclass(frozen=True)
class Outcome:
    """One trial against a target."""

    trial: Trial
    steps: float  #: to the target; inf: it did not get there
    samples: float
    best: float | None  #: the nearest that it came; None: nothing finite was measured
    aimed: bool  #: there is a target
    early: bool  #: the sweep ended it at a target of its own

    @property
    def verdict(self) -> Verdict:
        """``reached``, whatever came after; else how it ended, ``missed`` for a run that used up its budget."""
        if math.isfinite(self.steps):
            return "reached"
        status: Status = self.trial.status
        if status != "complete" or not self.aimed:
            return status
        return "ended early" if self.early else "missed"

    @property
    def is_valid(self) -> bool:
        """Whether it says something about its setting."""
        return self.verdict not in ("failed", "unfinished", "ended early")

    @property
    def last_step(self) -> float:
        """Steps after which it was last measured."""
        return self.trial.measurements[-1]["step"] if self.trial.measurements else 0


@dataclass(frozen=True)
class Setting:
    """The runs that differ in nothing but their seed."""

    parameters: Mapping[str, Value]
    runs: Sequence[Outcome]
    at_least: bool  #: of the metric: more is better

    @cached_property
    def valid_runs(self) -> list[Outcome]:
        """The runs that say something, the best first."""
        return sorted((run for run in self.runs if run.is_valid), key=lambda run: (run.steps, self._worse(run)))

    @cached_property
    def reached(self) -> list[Outcome]:
        return [run for run in self.valid_runs if math.isfinite(run.steps)]

    @cached_property
    def steps(self) -> float:
        """Median over the seeds; inf where half of them or more missed, or none counts."""
        return statistics.median(run.steps for run in self.valid_runs) if self.valid_runs else math.inf

    @cached_property
    def samples(self) -> float:
        return statistics.median(run.samples for run in self.valid_runs) if self.valid_runs else math.inf

    @cached_property
    def median_run(self) -> Outcome:
        """The run in the middle of the seeds, to show for all of them."""
        return self.valid_runs[(len(self.valid_runs) - 1) // 2] if self.valid_runs else self.runs[0]

    @cached_property
    def values(self) -> list[float]:
        """The best value of the metric in each run that counts, where there is one."""
        return [run.best for run in self.valid_runs if run.best is not None]

    @cached_property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @cached_property
    def std(self) -> float | None:
        """Standard deviation over the seeds, with n - 1; None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def best(self) -> float | None:
        """The nearest that any seed came."""
        return (max if self.at_least else min)(self.values, default=None)

    @property
    def shortfall(self) -> str:
        """What stands in the place of steps that there are not."""
        return _shortfall(self, self.runs)

    @property
    def rank(self) -> tuple[bool, int, float, float, float]:
        """Smallest for the best: reached by any seed, run on the most seeds, with the least steps; or the nearest to it.

        Searches often run every setting on one seed and repeat the best alone. Of many settings with one seed each some
        look good by luck, so that one of them would beat the very setting that was repeated.
        """
        share = len(self.reached) / max(1, len(self.valid_runs))
        seeds = len({run.trial.seed for run in self.valid_runs})
        return (not self.reached, -seeds, self.steps, -share, self.distance)

    @property
    def distance(self) -> float:
        """The mean of the metric, signed so that less is better; inf where a run has none."""
        whole = self.mean is not None and len(self.values) == len(self.valid_runs)
        return self._sign * self.mean if whole and self.mean is not None else math.inf

    @property
    def _sign(self) -> int:
        return -1 if self.at_least else 1

    def _worse(self, run: Outcome) -> float:
        return math.inf if run.best is None else self._sign * run.best


@dataclass(frozen=True)
class Cell:
    """All settings of one optimizer at one batch, the best first."""

    optimizer: str
    batch: int
    settings: Sequence[Setting]

    @property
    def best(self) -> Setting:
        return self.settings[0]

    @property
    def reached(self) -> bool:
        """Whether the best setting reaches the target in the median."""
        return math.isfinite(self.best.steps)

    @property
    def missed(self) -> bool:
        """Whether the target lies beyond what was tried, as far as the runs that count can tell."""
        early = any(run.verdict == "ended early" for run in self.outcomes)
        return bool(self.best.valid_runs) and not self.reached and not early

    @property
    def shortfall(self) -> str:
        """What stands in the place of the best setting's steps, where there are none."""
        return _shortfall(self.best, self.outcomes)

    @cached_property
    def outcomes(self) -> list[Outcome]:
        return [run for setting in self.settings for run in setting.runs]

    @property
    def most_steps(self) -> float:
        """The most steps that a run took."""
        return max((run.last_step for run in self.outcomes), default=0)

    @property
    def best_value(self) -> float | None:
        """The nearest to the target that any run came."""
        values = [setting.best for setting in self.settings if setting.best is not None]
        return (max if self.best.at_least else min)(values, default=None)

    @cached_property
    def lrs(self) -> list[float]:
        """The learning rates of the settings that were tried."""
        found = {lr for setting in self.settings if setting.valid_runs and (lr := peak_lr(setting)) is not None}
        return sorted(found)

    @property
    def lr_edge(self) -> Literal["lowest", "highest"] | None:
        """Whether the best learning rate lies at an end of those that were tried: the best may lie beyond."""
        lr = peak_lr(self.best)
        if lr is None or len(self.lrs) < 2:
            return None
        return "lowest" if lr == self.lrs[0] else "highest" if lr == self.lrs[-1] else None


def count_verdicts(runs: Iterable[Outcome], without: Sequence[str] = ()) -> str:
    """How many runs ended how, as in "2 reached, 1 diverged"."""
    found = Counter(run.verdict for run in runs)
    return ", ".join(
        f"{found[verdict]:,} {verdict}" for verdict in VERDICTS if found[verdict] and verdict not in without
    )


def _shortfall(setting: Setting, runs: Sequence[Outcome]) -> str:
    """Of a setting, in the light of all runs that might have done better."""
    open_, early = (any(run.verdict == verdict for run in runs) for verdict in ("unfinished", "ended early"))
    if not setting.valid_runs or (early and not setting.reached):
        return f"no result{' yet' if open_ else ''}: {count_verdicts(runs)}"
    some = f"{len(setting.reached)} of {len(setting.valid_runs)} seeds reached" if setting.reached else "missed"
    return f"{some} so far" if open_ else some


def peak_lr(setting: Setting) -> float | None:
    """The peak learning rate, where the sweep set one."""
    value = setting.parameters.get(LR)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def default_metric(trials: Iterable[Trial]) -> Target:
    """What to compare by without a target: accuracy, else loss, as a target that no value holds."""
    measured = {key for trial in trials for measurement in trial.measurements for key in measurement}
    name, at_least = next(((name, up) for name, up in _KNOWN if name in measured), _KNOWN[-1])
    return Target(name, math.nan, at_least)


def group_trials(trials: Sequence[Trial], target: Target, own: EarlyStop | None = None) -> list[Cell]:
    """Every (optimizer, batch), by name and size.

    An optimizer is named with its workload where the table holds more than one: they are not to be mixed.

    Args:
        target: what the trials are judged by.
        own: where the sweep ended them, if it had a target.
    """
    workloads = {(trial.dataset, trial.model) for trial in trials}
    found: dict[tuple[str, int], dict[frozenset[tuple[str, Value]], list[Outcome]]] = {}
    for trial in trials:
        of = " ".join(part for part in (trial.model, trial.dataset) if part)
        name = trial.optimizer or "any"
        key = (f"{name} ({of})" if len(workloads) > 1 else name, trial.batch_size)
        given = ((k, str(v) if isinstance(v, list) else v) for k, v in trial.parameters.items() if k != "seed")
        found.setdefault(key, {}).setdefault(frozenset(given), []).append(outcome(trial, target, own))
    result = []
    for (name, batch), settings in sorted(found.items(), key=lambda item: item[0]):
        made = [
            Setting(dict(sorted(key, key=lambda kv: kv[0])), sorted(runs, key=lambda r: r.trial.seed), target.at_least)
            for key, runs in settings.items()
        ]
        result.append(Cell(name, batch, sorted(made, key=lambda setting: setting.rank)))
    return result


def outcome(trial: Trial, target: Target, own: EarlyStop | None = None) -> Outcome:
    at: Measurement | None = target.reached(trial)
    steps, samples = (at["step"], at["samples"]) if at else (math.inf, math.inf)
    early = own is not None and own.early(trial)
    return Outcome(trial, steps, samples, target.best(trial), math.isfinite(target.value), early)


def reached_runs(found: Iterable[Cell]) -> list[Outcome]:
    """The seeds of each best setting that reached the target, where most did: what a curve is fitted to."""
    return [run for cell in found if cell.reached for run in cell.best.reached]


def choose(found: Sequence[Cell], optimizer: str | None, path: str) -> list[Cell]:
    """The cells of one optimizer.

    Raises:
        ConfigError: if there are several and none is chosen, or the chosen one is not there.
    """
    names = list(dict.fromkeys(cell.optimizer for cell in found))
    if optimizer is None and len(names) > 1:
        problem = f"{path} holds {len(names)} optimizers: {', '.join(names)}"
        raise ConfigError("--optimizer", None, problem, f"write --optimizer {names[0]!r}")
    if optimizer is not None and optimizer not in names:
        raise ConfigError("--optimizer", optimizer, f"{path} holds no runs of it", f"it has {', '.join(names)}")
    return [cell for cell in found if optimizer in (None, cell.optimizer)]
