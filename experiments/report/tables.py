"""The tables of a sweep's report: each number links to the report of its run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from markupsafe import Markup

from bellwether.experiments.analysis import fitting
from bellwether.experiments.analysis.aggregate import Cell, Setting, peak_lr, reached_runs
from bellwether.experiments.analysis.outcome import Outcome, count_verdicts
from bellwether.experiments.report.facts import Facts, Series, time_unit
from bellwether.experiments.report.lr_scaling import power
from bellwether.experiments.report.panels import key_name
from bellwether.experiments.sweep.measurements import Trial
from bellwether.trainer.progress import duration
from bellwether.trainer.report.facts import ABSENT, count, number, significant, whole
from bellwether.trainer.report.html import Column, Table


def link(facts: Facts, trial: Trial, text: str) -> Markup:
    """Text that links to a run's report, or plain text if there is none."""
    url = facts.link(trial)
    return Markup("{}").format(text) if url is None else Markup('<a href="{}">{}</a>').format(url, text)


def linked(facts: Facts, trial: Trial, text: str) -> Markup:
    """As `link`, followed by the trial's number if there is no report."""
    plain = Markup("" if facts.link(trial) else ' <small class="trial">#{}</small>').format(trial.trial)
    return link(facts, trial, text) + plain


def numbers(facts: Facts, runs: Iterable[Outcome]) -> Markup:
    """The numbers of trials, as links."""
    return Markup(" ").join(link(facts, run.trial, f"#{run.trial.trial}") for run in runs)


def time_name(hours: float) -> str:
    """
    >>> time_name(0.001), time_name(0.1), time_name(12.345)
    ('3.6 s', '6 min', '12.3 h')
    """
    length, unit = time_unit(hours)
    return f"{hours / length:,.3g} {unit}"


def value(setting: Setting) -> str:
    """Mean and standard deviation of the metric over the seeds."""
    deviation = "" if setting.std is None else f" ± {setting.std:.2g}"
    return f"{significant(setting.mean)}{deviation}"


def fits(facts: Facts) -> Table:
    """The fit of each optimizer's curve, and the runs that it is fitted to."""
    return Table([
        ("optimizer", "name", lambda series: series.name),
        ("B_crit", "n", lambda series: fitting.size(series.fit, series.largest)),
        ("90 % interval", "n", lambda series: fitting.span(series.fit, series.largest) or ABSENT),
        ("one batch left out", "n", _left_out), ("S_min, samples", "n", lambda series: whole(series.fit.s_min)),
        ("distance of a run", "n", lambda series: f"{100 * series.fit.spread:.1f} %"),
        ("batches", "n", lambda series: str(series.fit.batches)),
        ("runs", "runs", lambda series: numbers(facts, reached_runs(series.cells))),
    ], [series for series in facts.series if series.fit])  # fmt: skip


def _left_out(series: Series) -> str:
    """The range of B_crit if one batch size is left out."""
    found = series.checks.left_out if series.checks is not None else None
    return ABSENT if found is None else " to ".join(whole(end) if math.isfinite(end) else "no bound" for end in found)


def laws(facts: Facts) -> Table:
    """The exponent of each optimizer's learning rates, and the best one at each batch size."""

    def by_batch(series: Any) -> Markup:
        lrs = [
            (cell, significant(series.law.lrs[cell.batch], 3)) for cell in series.cells if cell.batch in series.law.lrs
        ]
        return Markup(", ").join(
            Markup("{:,}: {}").format(cell.batch, linked(facts, cell.best.median_run.trial, lr)) for cell, lr in lrs
        )

    return Table([
        ("optimizer", "name", lambda series: series.name),
        ("exponent", "n", lambda series: power(series.law.exponent)),
        ("error", "n", lambda series: number(series.law.error, ".2f")),
        ("90 % interval", "n", lambda series: " to ".join(map(power, series.law.interval or ())) or ABSENT),
        ("best lr, by batch", "runs", by_batch),
    ], [series for series in facts.series if series.law])  # fmt: skip


def bills(facts: Facts) -> Table:
    """Time to the target, and its cost if a price is given: a row per batch size, a column per optimizer."""
    return _matrix(facts, _bill)


def sides(facts: Facts) -> Table:
    """The results: a row per batch size, a column per optimizer; the best of each row is marked."""
    return _matrix(facts, _side)


def _matrix(facts: Facts, show: Callable[[Facts, Cell], Markup]) -> Table:
    def column(series: Series) -> Column:
        at = {cell.batch: show(facts, cell) for cell in series.cells}
        return series.name, "", lambda batch: at.get(batch, "not run")

    return Table([("batch", "n", lambda batch: f"{batch:,}"), *map(column, facts.series)], facts.batches, "sides")


def _bill(facts: Facts, cell: Cell) -> Markup:
    bill, trial = facts.bill(cell), cell.best.median_run.trial
    if bill is None or math.isinf(bill.hours):
        return linked(facts, trial, "no throughput known" if cell.reached else missed(facts, cell))
    lines = [f"{bill.process_hours:,.3g} process-hours"] if bill.process_hours != bill.hours else []
    if bill.cost is not None:
        lines.append(f"cost {bill.cost:,.2f}" if bill.cost >= 10 else f"cost {bill.cost:.3g}")
    if (speed := facts.throughput.of(trial)) is not None:
        lines.append(f"{speed:,.0f} samples/s")
    return _cell(facts, trial, time_name(bill.hours), lines)


def _side(facts: Facts, cell: Cell) -> Markup:
    best, lr = cell.best, peak_lr(cell.best)
    lines = [f"lr {significant(lr, 3)}"] if lr is not None else []
    if facts.target is None:
        text = value(best)
    elif cell.reached:
        text = f"{whole(best.steps)} steps"
        lines = [" · ".join([f"{whole(best.samples)} samples", *lines])]
    else:
        text = missed(facts, cell)
    if facts.target is not None:
        lines.append(f"{len(best.reached)} of {count(len(best.valid_runs), 'seed')}")
    if rest := count_verdicts(cell.outcomes, without=("reached", "complete")):
        lines.append(f"{count(len(cell.outcomes), 'run')}: {rest}")
    return _cell(facts, best.median_run.trial, text, lines, _won(facts, cell))


def _cell(facts: Facts, trial: Trial, text: str, lines: Sequence[str], won: str = "") -> Markup:
    """A cell: its number, and below it in small letters the details."""
    mark = Markup(' <span class="won">{}</span>').format(won) if won else ""
    below = Markup("").join(Markup("<br><small>{}</small>").format(link(facts, trial, line)) for line in lines)
    return linked(facts, trial, text) + mark + below


def missed(facts: Facts, cell: Cell) -> str:
    """The text that replaces the number of a cell without one."""
    if not cell.best.valid_runs:
        return cell.shortfall
    best = "not measured" if cell.best_value is None else significant(cell.best_value)
    return f"{cell.shortfall} (best {facts.measure} {best})"


def _won(facts: Facts, cell: Cell) -> str:
    """Marks the best cell at its batch size, and whether the spreads over the seeds leave it uncertain."""
    others = [other for other in facts.cells if other.batch == cell.batch and other is not cell]
    if not others or facts.winners.get(cell.batch) is not cell:
        return ""
    worst = max(_values(facts, cell), default=-math.inf)
    close = any(min(_values(facts, other), default=math.inf) <= worst for other in others)
    return "best, spreads overlap" if close else "best"


def _values(facts: Facts, cell: Cell) -> list[float]:
    """The results of the best setting's seeds, as numbers of which the smaller is better."""
    if facts.target is not None:
        return [run.steps for run in cell.best.valid_runs] if cell.reached else []
    return [-value if facts.metric.at_least else value for value in cell.best.values]


class Row(NamedTuple):
    """What a row of the large tables is about."""

    cell: Cell
    setting: Setting
    run: Outcome  #: of the setting; its middle seed where the row is about all of them


def settings(facts: Facts) -> Table:
    """Every setting: its runs, and mean and deviation over the seeds."""

    def median(row: Row) -> Markup:
        setting = row.setting
        return linked(facts, row.run.trial, whole(setting.steps) if math.isfinite(setting.steps) else setting.shortfall)

    def span(row: Row) -> str:
        steps = [run.steps for run in row.setting.reached]
        return f"{whole(min(steps))} – {whole(max(steps))}" if len(steps) > 1 else ABSENT

    to_target: list[Column] = [("steps, median", "n", median), ("over the seeds", "n", span)]
    return Table([
        *_setting(facts), *(to_target if facts.target else []),
        (f"best {facts.measure}, mean ± deviation", "n", lambda row: linked(facts, row.run.trial, value(row.setting))),
        ("ended", "note", lambda row: count_verdicts(row.setting.runs)),
        ("runs", "runs", lambda row: numbers(facts, row.setting.runs)),
    ], [Row(cell, setting, setting.median_run) for cell in facts.cells for setting in cell.settings])  # fmt: skip


def trials(facts: Facts) -> Table:
    """Every run, in the order of the settings."""
    optimizer, batch, *parameters = _setting(facts)
    to_target: list[Column] = [
        ("steps to target", "n", lambda row: link(facts, row.run.trial, whole(row.run.steps))),
        ("samples", "n", lambda row: link(facts, row.run.trial, whole(row.run.samples))),
    ]
    return Table([
        ("run", "n", lambda row: numbers(facts, [row.run])), optimizer, batch,
        ("seed", "n", lambda row: str(row.run.trial.seed)), *parameters, ("ended", "note", lambda row: row.run.verdict),
        *(to_target if facts.target else []),
        (f"best {facts.measure}", "n", lambda row: link(facts, row.run.trial, significant(row.run.best))),
        ("steps run", "n", lambda row: whole(row.run.last_step)),
        ("time", "n", lambda row: duration(row.run.trial.seconds) if row.run.trial.seconds else ABSENT),
    ], [Row(cell, setting, run) for cell in facts.cells for setting in cell.settings for run in setting.runs],
    )  # fmt: skip


def _setting(facts: Facts) -> list[Column]:
    """The columns that tell which setting a row is about."""

    def parameter(row: Row, key: str) -> str:
        found = row.setting.parameters.get(key)
        return significant(found, 3) if isinstance(found, float) else ABSENT if found is None else str(found)

    return [
        ("optimizer", "name", lambda row: row.cell.optimizer), ("batch", "n", lambda row: f"{row.cell.batch:,}"),
        *((key_name(key), "n", partial(parameter, key=key)) for key in facts.keys),
    ]  # fmt: skip
