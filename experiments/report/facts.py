"""The contents of a sweep's report, computed from its trials: no pictures, no HTML. Imports are light but for numpy."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from bellwether.experiments.analysis import convergence_points, critical_batch, fit_checks
from bellwether.experiments.analysis.aggregate import (
    LR,
    Cell,
    Setting,
    default_metric,
    group_trials,
    peak_lr,
)
from bellwether.experiments.analysis.comparison import Comparison, compare
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
        return one and one * trial.processes


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
    checks: fit_checks.Checks | None  #: of the fit
    law: Law | None
    notes: Sequence[str]  #: warnings about the fit

    @property
    def largest(self) -> int:
        """The largest batch size that the fit uses: some seed reached the target."""
        return max(cell.batch for cell in self.cells if cell.best.reached)


@dataclass(frozen=True)
class Grid:
    """A cell in which exactly two numbers were searched, every value of one with every value of the other."""

    cell: Cell
    x: str
    y: str
    settings: Mapping[tuple[float, float], Setting]

    @property
    def xs(self) -> list[float]:
        return sorted({x for x, _ in self.settings})

    @property
    def ys(self) -> list[float]:
        return sorted({y for _, y in self.settings})


@dataclass(frozen=True)
class Facts:
    """The contents of a sweep."""

    name: str
    root: Path  #: directory that the runs' paths are relative to
    trials: Sequence[Trial]
    target: Target | None  #: None: the sweep has none, and settings are compared by a metric
    price: float | None = None  #: of an hour of one process
    throughput: Throughput = Throughput()
    compared: Target | None = None  #: metric and direction without a target; None: accuracy, or else loss
    own: EarlyStop | None = None  #: where the sweep ended its runs, which may differ from `target`
    to_come: int = 0  #: planned runs that have not begun

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
    def comparison(self) -> Comparison | None:
        """The optimizers, ranked by the steps to the target; None without a target, or where there is nothing to compare."""
        return None if self.target is None else compare({self.name: self.cells}, lambda run: run.steps)

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
        searched = {key for cell in self.cells for key in varied(cell)}
        if any(peak_lr(setting) is not None for cell in self.cells for setting in cell.settings):
            searched.add(LR)
        return sorted(searched - set(_OWN), key=_lr_first)

    @cached_property
    def grids(self) -> list[Grid]:
        return [grid for cell in self.cells if (grid := _grid(cell)) is not None]

    def link(self, trial: Trial) -> str | None:
        """URL of a run's report, or else its directory, relative to the page; None if there is neither."""
        path = self.root / trial.run
        if not trial.run or PurePosixPath(trial.run).is_absolute() or not path.is_dir():
            return None
        return quote(f"./{PurePosixPath(trial.run)}/{REPORT if (path / REPORT).is_file() else ''}")

    def bill(self, cell: Cell) -> Bill | None:
        """Time and cost of a cell; None if the throughput of no run of the best setting is known."""
        found = []
        for run in cell.best.valid_runs:
            speed = self.throughput.of(run.trial) or (1.0 if math.isinf(run.samples) else None)
            if speed is not None:
                found.append((run.samples / speed / 3600, run.trial.processes))
        if not any(math.isfinite(hours) for hours, _ in found):
            return None
        work = statistics.median(hours * processes for hours, processes in found)
        cost = None if self.price is None else work * self.price
        return Bill(statistics.median(hours for hours, _ in found), work, cost)

    @cached_property
    def winners(self) -> dict[int, Cell]:
        """The best cell at each batch size; batch sizes without a result are left out."""
        won: dict[int, Cell] = {}
        for cell in sorted(self.cells, key=lambda cell: (cell.best.steps, cell.best.distance)):
            if self.has_result(cell):
                won.setdefault(cell.batch, cell)
        return won

    def has_result(self, cell: Cell) -> bool:
        """Whether a cell reached the target or, without a target, measured the metric."""
        return bool(cell.reached if self.target else cell.best.values)

    @property
    def seeds_missed(self) -> bool:
        """Whether a seed of a best setting missed the target."""
        return any(math.isinf(run.steps) for cell in self.cells for run in cell.best.valid_runs)

    @property
    def seeds_differ(self) -> bool:
        """Whether some settings ran on more seeds than others."""
        return len({len(setting.runs) for cell in self.cells for setting in cell.settings}) > 1

    @cached_property
    def notes(self) -> list[str]:
        """What a reader must know before reading any number, a sentence each."""
        if not self.trials:
            return ["The table holds no trial: nothing has been measured yet."]
        found = []
        if self.target is None:
            found.append(f"There is no target, so settings are compared by the best {self.measure} of their runs.")
        if not any(run.best is not None for run in self.outcomes):
            found.append(f"No run has measured {self.metric.metric}.")
        if self.unfinished:
            begun = f"{len(self.trials):,} of {self.planned:,} runs have begun. " if self.to_come else ""
            open_ = self.verdicts.get("unfinished", 0)
            found.append(f"{begun}{f'Runs that have not ended: {open_:,}. ' if open_ else ''}The results may change.")
        if early := self.verdicts.get("ended early"):
            found.append(
                f"Runs that the sweep ended at its own target, {self.own}, before they came to this one: {early:,}. "
                "They are not counted here."
            )
        if failed := self.verdicts.get("failed"):
            found.append(f"Runs that ended in an error: {failed:,}. They are not counted.")
        return found

    def _series(self, name: str, found: list[Cell]) -> Series:
        curve, checks, notes = _curve(found) if self.target else (None, None, [])
        held = [cell for cell in found if self.has_result(cell)]
        for cell in held:
            seeds, most = len(cell.best.runs), max(len(setting.runs) for setting in cell.settings)
            if seeds < most:
                notes.append(
                    f"at batch {cell.batch:,} the best setting ran on {count(seeds, 'seed')}, "
                    f"another on {most}: repeat it"
                )
        return Series(name, found, curve, checks, law(held), notes)


def _curve(found: list[Cell]) -> tuple[critical_batch.Fit | None, fit_checks.Checks | None, list[str]]:
    """The fit to the best settings, its checks, and what to know about it."""
    lost: dict[str, list[str]] = {}
    for cell in found:
        if not cell.reached:
            lost.setdefault(cell.shortfall, []).append(f"{cell.batch:,}")
    notes = [
        f"the target was missed at batch {', '.join(batches)}: the steps needed there are unknown" if what == "missed"
        else f"at batch {', '.join(batches)}: {what}"
        for what, batches in lost.items()
    ]  # fmt: skip
    points = convergence_points.from_cells(found)
    sizes = {batch for batch, hit in zip(points.batches, points.reached, strict=True) if hit}
    fit = points.fit() if len(sizes) > 1 else None
    missed = sum(len(cell.best.valid_runs) - len(cell.best.reached) for cell in found)
    if missed:
        censored = "; the fit takes them to need more samples than they had" if fit is not None else ""
        notes.append(f"{count(missed, 'seed')} of best settings missed{censored}")
    if fit is None:
        where = "one batch alone" if sizes else "no batch"
        return None, None, [f"the target was reached at {where}: a curve needs two, better five", *notes]
    checks = fit_checks.check(fit)
    return fit, checks, [*fit.warnings, *checks.warnings, *notes]


def _lr_first(key: str) -> tuple[bool, str]:
    return key != LR, key


def varied(cell: Cell) -> list[str]:
    """The parameters that differ between the settings of a cell."""
    keys = sorted({key for setting in cell.settings for key in setting.parameters})
    return [key for key in keys if len({setting.parameters.get(key) for setting in cell.settings}) > 1]


def _grid(cell: Cell) -> Grid | None:
    keys = varied(cell)
    if len(keys) != 2:
        return None
    x, y = sorted(keys, key=_lr_first)
    settings: dict[tuple[float, float], Setting] = {}
    for setting in cell.settings:
        pair = setting.parameters.get(x), setting.parameters.get(y)
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in pair):
            return None
        settings[float(pair[0]), float(pair[1])] = setting  # type: ignore[arg-type]
    grid = Grid(cell, x, y, settings)
    # In a random search every setting has different values: that is not a grid.
    whole = min(len(grid.xs), len(grid.ys)) >= 2 and 2 * len(settings) >= len(grid.xs) * len(grid.ys)
    return grid if whole else None
