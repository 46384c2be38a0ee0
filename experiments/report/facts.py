"""The contents of a sweep's report, computed from its trials: no pictures, no HTML. Imports are light but for numpy."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from bellwether.experiments.analysis import critical_batch
from bellwether.experiments.analysis.aggregate import (
    LR,
    Cell,
    Setting,
    default_metric,
    group_trials,
    peak_lr,
    reached_runs,
)
from bellwether.experiments.analysis.outcome import VERDICTS, EarlyStop, Outcome, Verdict
from bellwether.experiments.report.lr_scaling import Law, law
from bellwether.experiments.sweep.measurements import Target, Trial
from bellwether.trainer.report.facts import count

REPORT = "report.html"  #: of a run, in its directory; of a sweep, in its own; of a table NAME.report.html beside it
_OWN = ("batch.global", "optimizer.name")  # keys that define a cell


@dataclass(frozen=True)
class Throughput:
    """Samples per second: given for one process, by batch size or for all, or measured in each run."""

    given: Mapping[int, float] | float | None = None

    def of(self, trial: Trial) -> float | None:
        """Samples per second of all processes of a run; None if unknown."""
        if self.given is None:
            values = [m.get("train/samples_per_s", math.nan) for m in trial.measurements]
            known = [value for value in values if math.isfinite(value) and value > 0]
            return statistics.median(known) if known else None
        one = self.given if isinstance(self.given, float) else self.given.get(trial.batch_size)
        return None if one is None else one * trial.processes


@dataclass(frozen=True)
class Bill:
    """Time and cost of reaching the target with the best setting of a cell: medians over the seeds."""

    hours: float
    process_hours: float
    cost: float | None  #: None: no price is known


def time_unit(hours: float) -> tuple[float, str]:
    """The unit for a time: its length in hours, and its name."""
    return next((unit for unit in ((1.0, "h"), (1 / 60, "min")) if hours >= unit[0]), (1 / 3600, "s"))


@dataclass(frozen=True)
class Series:
    """One optimizer over the batch sizes, in ascending order."""

    name: str
    cells: Sequence[Cell]
    fit: critical_batch.Fit | None
    law: Law | None
    notes: Sequence[str]  #: warnings about the fit


@dataclass(frozen=True)
class Grid:
    """A cell in which exactly two numbers were searched, every value of one with every value of the other."""

    cell: Cell
    x: str
    y: str
    xs: Sequence[float]
    ys: Sequence[float]
    settings: Mapping[tuple[float, float], Setting]


@dataclass(frozen=True)
class Facts:
    """The contents of a sweep.

    Args:
        name: of the sweep.
        root: directory that the runs' paths are relative to.
        trials: all trials of the table.
        target: the target of the runs; None: the sweep has none, and settings are compared by a metric.
        price: of an hour of one process.
        throughput: of the runs.
        compared: metric and direction without a target; None: accuracy, or loss if accuracy was not measured.
        own: the target at which the sweep ended its runs, which may differ from `target`.
        to_come: planned runs that have not begun.
    """

    name: str
    root: Path
    trials: Sequence[Trial]
    target: Target | None
    price: float | None = None
    throughput: Throughput = Throughput()
    compared: Target | None = None
    own: EarlyStop | None = None
    to_come: int = 0
    _links: dict[int, str | None] = field(default_factory=dict, repr=False)

    @cached_property
    def metric(self) -> Target:
        """The metric and its direction, with or without a target."""
        return self.target or self.compared or default_metric(self.trials)

    @property
    def measure(self) -> str:
        """The metric's short name."""
        return self.metric.metric.removeprefix("val/")

    @cached_property
    def cells(self) -> list[Cell]:
        return group_trials(self.trials, self.metric, self.own)

    @cached_property
    def series(self) -> list[Series]:
        names = list(dict.fromkeys(cell.optimizer for cell in self.cells))
        return [self._series(name, [cell for cell in self.cells if cell.optimizer == name]) for name in names]

    @cached_property
    def batches(self) -> list[int]:
        return sorted({trial.batch_size for trial in self.trials})

    @cached_property
    def outcomes(self) -> list[Outcome]:
        return [run for cell in self.cells for run in cell.outcomes]

    @cached_property
    def verdicts(self) -> dict[Verdict, int]:
        """The number of runs by how they ended; verdicts without runs are left out."""
        found = Counter(run.verdict for run in self.outcomes)
        return {verdict: found[verdict] for verdict in VERDICTS if found[verdict]}

    @property
    def planned(self) -> int:
        """Runs that have begun, and those that have not."""
        return len(self.trials) + self.to_come

    @property
    def unfinished(self) -> bool:
        """Whether runs are still running, or have not begun."""
        return self.to_come > 0 or "unfinished" in self.verdicts

    @cached_property
    def keys(self) -> list[str]:
        """The parameters that were searched, which differ within a cell; the learning rate first."""
        searched = {key for cell in self.cells for key in varied(cell)} | ({LR} if self._has_lr else set())
        return sorted(searched - set(_OWN), key=lambda key: (key != LR, key))

    @cached_property
    def grids(self) -> list[Grid]:
        return [grid for cell in self.cells if (grid := _grid(cell)) is not None]

    def link(self, trial: Trial) -> str | None:
        """URL of a run's report, or else its directory, relative to the page; None if there is neither."""
        if trial.trial not in self._links:
            path = PurePosixPath(trial.run)
            there = bool(trial.run) and not path.is_absolute() and (self.root / path).is_dir()
            place = f"./{path}/{REPORT if (self.root / path / REPORT).is_file() else ''}"
            self._links[trial.trial] = quote(place) if there else None
        return self._links[trial.trial]

    def bill(self, cell: Cell) -> Bill | None:
        """Time and cost of a cell; None if the throughput of no run of the best setting is known."""
        found = []
        for run in cell.best.valid_runs:
            rate_ = self.throughput.of(run.trial)
            if rate_ is not None:
                hours = run.samples / rate_ / 3600
                found.append((hours, hours * run.trial.processes))
            elif math.isinf(run.samples):
                found.append((math.inf, math.inf))
        known = [pair for pair in found if math.isfinite(pair[0])]
        if not known:
            return None
        hours, work = (statistics.median(pair[i] for pair in found) for i in (0, 1))
        return Bill(hours, work, None if self.price is None else work * self.price)

    @cached_property
    def winners(self) -> dict[int, Cell]:
        """The best cell at each batch size; batch sizes without a result are left out."""
        won = {}
        for batch in self.batches:
            here = [cell for cell in self.cells if cell.batch == batch and (cell.reached or self.target is None)]
            here = [cell for cell in here if self.target is not None or cell.best.mean is not None]
            if here:
                won[batch] = min(here, key=lambda cell: (cell.best.steps, cell.best.distance))
        return won

    @cached_property
    def notes(self) -> list[str]:
        """What a reader must know before reading any number, a sentence each."""
        found = []
        if not self.trials:
            return ["The table holds no trial: nothing has been measured yet."]
        if self.target is None:
            found.append(f"There is no target, so settings are compared by the best {self.measure} of their runs.")
        if not any(run.best is not None for run in self.outcomes):
            found.append(f"No run has measured {self.metric.metric}.")
        if self.unfinished:
            begun = f"{len(self.trials):,} of {self.planned:,} runs have begun. " if self.to_come else ""
            open_ = self.verdicts.get("unfinished", 0)
            running = f"Runs that have not ended: {open_:,}. " if open_ else ""
            found.append(f"{begun}{running}The results may change.")
        if self.verdicts.get("ended early"):
            found.append(
                f"Runs that the sweep ended at its own target, {self.own}, before they came to this one: "
                f"{self.verdicts['ended early']:,}. They are not counted here."
            )
        if self.verdicts.get("failed"):
            found.append(f"Runs that ended in an error: {self.verdicts['failed']:,}. They are not counted.")
        return found

    @property
    def _has_lr(self) -> bool:
        return any(peak_lr(setting) is not None for cell in self.cells for setting in cell.settings)

    def _series(self, name: str, found: list[Cell]) -> Series:
        curve, notes = _curve(found) if self.target else (None, [])
        held = (
            [cell for cell in found if cell.reached] if self.target else [c for c in found if c.best.mean is not None]
        )
        for cell in found:
            most = max(len(setting.runs) for setting in cell.settings)
            if cell in held and len(cell.best.runs) < most:
                notes.append(
                    f"at batch {cell.batch:,} the best setting ran on {count(len(cell.best.runs), 'seed')}, "
                    f"another on {most}: repeat it"
                )
        return Series(name, found, curve, law(held), notes)


def _curve(found: list[Cell]) -> tuple[critical_batch.Fit | None, list[str]]:
    runs = reached_runs(found)
    sizes = {run.trial.batch_size for run in runs}
    lost: dict[str, list[str]] = {}
    for cell in found:
        if not cell.reached:
            lost.setdefault(cell.shortfall, []).append(f"{cell.batch:,}")
    notes = []
    for what, batches in lost.items():
        where = ", ".join(batches)
        known = what != "missed"
        notes.append(
            f"at batch {where}: {what}" if known
            else f"the target was missed at batch {where}: the steps needed there are unknown"
        )  # fmt: skip
    missed = sum(len(cell.best.valid_runs) - len(cell.best.reached) for cell in found if cell.reached)
    if missed:
        notes.append(f"{count(missed, 'seed')} of best settings missed and cannot be fitted: the fit is optimistic")
    if len(sizes) < 2:
        where = "one batch alone" if sizes else "no batch"
        return None, [f"the target was reached at {where}: a curve needs two, better five", *notes]
    fit = critical_batch.fit([run.trial.batch_size for run in runs], [run.samples for run in runs])
    return fit, [*fit.warnings, *notes]


def varied(cell: Cell) -> list[str]:
    """The parameters that differ between the settings of a cell."""
    keys = sorted({key for setting in cell.settings for key in setting.parameters})
    return [key for key in keys if len({setting.parameters.get(key) for setting in cell.settings}) > 1]


def _grid(cell: Cell) -> Grid | None:
    keys = varied(cell)
    if len(keys) != 2:
        return None
    x, y = sorted(keys, key=lambda key: (key != LR, key))
    settings: dict[tuple[float, float], Setting] = {}
    for setting in cell.settings:
        pair = setting.parameters.get(x), setting.parameters.get(y)
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in pair):
            return None
        settings[float(pair[0]), float(pair[1])] = setting  # type: ignore[arg-type]
    xs, ys = (sorted({pair[i] for pair in settings}) for i in (0, 1))
    # In a random search every setting has different values: that is not a grid.
    if min(len(xs), len(ys)) < 2 or 2 * len(settings) < len(xs) * len(ys):
        return None
    return Grid(cell, x, y, xs, ys, settings)
