"""Aggregates the trials of a sweep: each setting over its seeds, and the best setting of each optimizer at each batch size.

A *setting* is everything the sweep set except the seed. A *cell* holds all settings of one optimizer at one batch size. Steps
and samples to the target are medians over the seeds, in which a seed that missed counts as infinity: excluding misses would
make a bad setting look good. Trials that failed, have not ended, or were stopped by the sweep at its own target are not valid
for a setting unless they had reached the target before; they are counted separately. The best setting of a cell has the
lowest median among the settings with the most seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from bellwether.experiments.analysis.outcome import EarlyStop, Outcome, count_verdicts, judge
from bellwether.experiments.sweep.measurements import Target, Trial, Value
from bellwether.trainer.config import ConfigError

LR = "optimizer.lr"

_DEFAULT_METRICS = (
    ("val/perplexity", False),
    ("val/accuracy", True),
    ("val/loss", False),
)  # (metric, higher is better)


@dataclass(frozen=True)
class Setting:
    """The runs of one setting, which differ only in their seed."""

    parameters: Mapping[str, Value]
    runs: Sequence[Outcome]
    at_least: bool  #: a higher value of the metric is better

    @cached_property
    def valid_runs(self) -> list[Outcome]:
        """The valid runs of the setting, the best first: see `Outcome.is_valid`."""
        return sorted((run for run in self.runs if run.is_valid), key=lambda run: (run.steps, self._distance(run)))

    @cached_property
    def reached(self) -> list[Outcome]:
        """The runs that reached the target."""
        return [run for run in self.valid_runs if math.isfinite(run.steps)]

    @cached_property
    def steps(self) -> float:
        """Median over the seeds; inf if half of them or more missed, or if there is no valid run."""
        return statistics.median(run.steps for run in self.valid_runs) if self.valid_runs else math.inf

    @cached_property
    def samples(self) -> float:
        """As `steps`, in samples."""
        return statistics.median(run.samples for run in self.valid_runs) if self.valid_runs else math.inf

    @cached_property
    def median_run(self) -> Outcome:
        """The run of the median seed, to represent the setting."""
        return self.valid_runs[(len(self.valid_runs) - 1) // 2] if self.valid_runs else self.runs[0]

    @cached_property
    def values(self) -> list[float]:
        """The best value of the metric in each valid run that measured it."""
        return [run.best for run in self.valid_runs if run.best is not None]

    @cached_property
    def mean(self) -> float | None:
        """Mean of `values`; None if there are none."""
        return statistics.fmean(self.values) if self.values else None

    @cached_property
    def std(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def best(self) -> float | None:
        """The best value of the metric in any valid run."""
        return (max if self.at_least else min)(self.values, default=None)

    @property
    def shortfall(self) -> str:
        """Text to show instead of the steps to the target if there are none."""
        return _shortfall(self, self.runs)

    @property
    def sort_key(self) -> tuple[bool, int, float, float, float]:
        """Smallest for the best: reached by any seed, most seeds, fewest steps; else nearest to the target.

        Searches often run every setting on one seed and repeat only the best. Of many settings with one seed each, some
        look good by luck, and one of them could beat the very setting that was repeated.
        """
        share = len(self.reached) / max(1, len(self.valid_runs))
        seeds = len({run.trial.seed for run in self.valid_runs})
        return (not self.reached, -seeds, self.steps, -share, self.distance)

    @property
    def distance(self) -> float:
        """Mean of the metric, negated if higher is better; inf if a valid run measured nothing."""
        complete = self.mean is not None and len(self.values) == len(self.valid_runs)
        return self._sign * self.mean if complete and self.mean is not None else math.inf

    @property
    def _sign(self) -> int:
        return -1 if self.at_least else 1

    def _distance(self, run: Outcome) -> float:
        return math.inf if run.best is None else self._sign * run.best


@dataclass(frozen=True)
class Cell:
    """All settings of one optimizer at one batch size, the best first."""

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
        """Whether the valid runs show that the target lies beyond the steps that were run."""
        early = any(run.verdict == "ended early" for run in self.outcomes)
        return bool(self.best.valid_runs) and not self.reached and not early

    @property
    def shortfall(self) -> str:
        """Text to show instead of the best setting's steps to the target if there are none."""
        return _shortfall(self.best, self.outcomes)

    @cached_property
    def outcomes(self) -> list[Outcome]:
        return [run for setting in self.settings for run in setting.runs]

    @property
    def most_steps(self) -> float:
        """The most steps of any run."""
        return max((run.last_step for run in self.outcomes), default=0)

    @property
    def best_value(self) -> float | None:
        """The best value of the metric in any valid run."""
        values = [setting.best for setting in self.settings if setting.best is not None]
        return (max if self.best.at_least else min)(values, default=None)

    @cached_property
    def lrs(self) -> list[float]:
        """The learning rates of all settings with valid runs."""
        tried_lrs = {lr for setting in self.settings if setting.valid_runs and (lr := peak_lr(setting)) is not None}
        return sorted(tried_lrs)

    @property
    def lr_edge(self) -> Literal["lowest", "highest"] | None:
        """Whether the best learning rate is the lowest or highest that was tried: the optimum may lie beyond."""
        lr = peak_lr(self.best)
        if lr is None or len(self.lrs) < 2:
            return None
        return "lowest" if lr == self.lrs[0] else "highest" if lr == self.lrs[-1] else None


def _shortfall(setting: Setting, competitors: Sequence[Outcome]) -> str:
    """Why a setting has no steps to the target, given all runs that might have reached it sooner."""
    unfinished, early = (
        any(run.verdict == verdict for run in competitors) for verdict in ("unfinished", "ended early")
    )
    if not setting.valid_runs or (early and not setting.reached):
        return f"no result{' yet' if unfinished else ''}: {count_verdicts(competitors)}"
    some = f"{len(setting.reached)} of {len(setting.valid_runs)} seeds reached" if setting.reached else "missed"
    return f"{some} so far" if unfinished else some


def peak_lr(setting: Setting) -> float | None:
    """The peak learning rate; None if the sweep did not set one."""
    value = setting.parameters.get(LR)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def default_metric(trials: Iterable[Trial]) -> Target:
    """The metric to compare by without a target: perplexity, else accuracy, else loss; as a target that no value satisfies."""
    measured = {key for trial in trials for measurement in trial.measurements for key in measurement}
    name, at_least = next((pair for pair in _DEFAULT_METRICS if pair[0] in measured), _DEFAULT_METRICS[-1])
    return Target(name, math.nan, at_least)


def group_trials(trials: Sequence[Trial], target: Target, early_stop: EarlyStop | None = None) -> list[Cell]:
    """Group trials into cells, sorted by optimizer and batch size.

    The name of an optimizer includes its workload if the table holds more than one: workloads are not comparable.

    Args:
        target: that the trials are judged by.
        early_stop: where the sweep stopped its trials, if it had a target.
    """
    workloads = {(trial.dataset, trial.model) for trial in trials}
    grouped: dict[tuple[str, int], dict[frozenset[tuple[str, Value]], list[Outcome]]] = {}
    for trial in trials:
        workload = " ".join(part for part in (trial.model, trial.dataset) if part)
        name = trial.optimizer or "any"
        key = (f"{name} ({workload})" if len(workloads) > 1 else name, trial.batch_size)
        parameters = (
            (k, str(v) if isinstance(v, list | dict) else v) for k, v in trial.parameters.items() if k != "seed"
        )
        grouped.setdefault(key, {}).setdefault(frozenset(parameters), []).append(judge(trial, target, early_stop))
    cells = []
    for (name, batch), by_parameters in sorted(grouped.items(), key=lambda item: item[0]):
        settings = [
            Setting(dict(sorted(key, key=lambda kv: kv[0])), sorted(runs, key=lambda r: r.trial.seed), target.at_least)
            for key, runs in by_parameters.items()
        ]
        cells.append(Cell(name, batch, sorted(settings, key=lambda setting: setting.sort_key)))
    return cells


def reached_runs(cells: Iterable[Cell]) -> list[Outcome]:
    """The runs to fit a curve to: the seeds of each best setting that reached the target, if most of them did."""
    return [run for cell in cells if cell.reached for run in cell.best.reached]


def choose(cells: Sequence[Cell], optimizer: str | None, path: str) -> list[Cell]:
    """The cells of one optimizer.

    Raises:
        ConfigError: if there are several optimizers and none is chosen, or the chosen one does not exist.
    """
    names = list(dict.fromkeys(cell.optimizer for cell in cells))
    if optimizer is None and len(names) > 1:
        problem = f"{path} has {len(names)} optimizers: {', '.join(names)}"
        raise ConfigError("--optimizer", None, problem, f"write --optimizer {names[0]!r}")
    if optimizer is not None and optimizer not in names:
        raise ConfigError("--optimizer", optimizer, f"{path} has no runs of it", f"it has {', '.join(names)}")
    return [cell for cell in cells if optimizer in (None, cell.optimizer)]
