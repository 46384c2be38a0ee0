"""The tables of a sweep's report: each number links to the report of its run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup

from bellwether.experiments.analysis import fitting
from bellwether.experiments.analysis.aggregate import Cell, Setting, peak_lr
from bellwether.experiments.analysis.outcome import Outcome, count_verdicts
from bellwether.experiments.report.facts import Facts, time_unit
from bellwether.experiments.report.lr_scaling import power
from bellwether.experiments.report.panels import key_name
from bellwether.experiments.sweep.measurements import Trial
from bellwether.trainer.progress import duration
from bellwether.trainer.report.facts import ABSENT, count, number, whole
from bellwether.trainer.report.html import Table


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


def small(value: float | None) -> str:
    return number(value, ".4g").replace("e-0", "e-")


def short(value: float) -> str:
    return f"{value:.3g}".replace("e-0", "e-")


def time_name(hours: float) -> str:
    """
    >>> time_name(0.001), time_name(0.1), time_name(12.345)
    ('3.6 s', '6 min', '12.3 h')
    """
    length, unit = time_unit(hours)
    return f"{hours / length:,.3g} {unit}"


def value(setting: Setting) -> str:
    """Mean and standard deviation of the metric over the seeds."""
    if setting.mean is None:
        return ABSENT
    return small(setting.mean) + (f" ± {setting.std:.2g}" if setting.std is not None else "")


def fits(facts: Facts) -> Table:
    """The fit of each optimizer's curve, and the runs that it is fitted to."""
    rows = []
    for series in facts.series:
        fit = series.fit
        if fit is not None:
            largest = max(cell.batch for cell in series.cells if cell.reached)
            runs = [run for cell in series.cells if cell.reached for run in cell.best.reached]
            rows.append((
                series.name, fitting.size(fit, largest), fitting.span(fit, largest) or ABSENT, whole(fit.s_min),
                f"{100 * fit.spread:.1f} %", str(fit.batches), numbers(facts, runs),
            ))  # fmt: skip
    labels = ("B_crit", "90 % interval", "S_min, samples", "distance of a run", "batches")
    return Table([("optimizer", "name"), *((label, "n") for label in labels), ("runs", "runs")], rows)


def laws(facts: Facts) -> Table:
    """The exponent of each optimizer's learning rates, and the best one at each batch size."""
    rows = []
    for series in facts.series:
        law = series.law
        if law is None:
            continue
        cells = {cell.batch: cell for cell in series.cells}
        best = Markup(", ").join(
            Markup("{}: {}").format(f"{batch:,}", linked(facts, cells[batch].best.median_run.trial, short(lr)))
            for batch, lr in zip(law.batches, law.lrs, strict=True)
        )
        span = f"{power(law.interval[0])} to {power(law.interval[1])}" if law.interval else ABSENT
        exponent = ABSENT if law.exponent is None else power(law.exponent)
        rows.append((series.name, exponent, number(law.error, ".2f"), span, best))
    labels = ("exponent", "error", "90 % interval")
    return Table([("optimizer", "name"), *((label, "n") for label in labels), ("best lr, by batch", "runs")], rows)


def bills(facts: Facts) -> Table | None:
    """Time to the target, and its cost if a price is given: a row per batch size, a column per optimizer."""
    return _matrix(facts, _bill) if any(facts.bill(cell) for cell in facts.cells) else None


def sides(facts: Facts) -> Table:
    """The results: a row per batch size, a column per optimizer; the best of each row is marked."""
    return _matrix(facts, _side)


def _matrix(facts: Facts, show: Callable[[Facts, Cell], Markup]) -> Table:
    names = [series.name for series in facts.series]
    at = {(cell.batch, cell.optimizer): cell for cell in facts.cells}
    rows = [
        [f"{batch:,}", *(show(facts, at[batch, name]) if (batch, name) in at else "not run" for name in names)]
        for batch in facts.batches
    ]
    return Table([("batch", "n"), *((name, "") for name in names)], rows, "sides")


def _bill(facts: Facts, cell: Cell) -> Markup:
    bill, trial = facts.bill(cell), cell.best.median_run.trial
    if bill is None or math.isinf(bill.hours):
        return linked(facts, trial, "no throughput known" if cell.reached else missed(facts, cell))
    lines = [f"{bill.process_hours:,.3g} process-hours"] if bill.process_hours != bill.hours else []
    if bill.cost is not None:
        lines.append(f"cost {bill.cost:,.2f}" if bill.cost >= 10 else f"cost {bill.cost:.3g}")
    speed = facts.throughput.of(trial)
    if speed is not None:
        lines.append(f"{speed:,.0f} samples/s")
    return _lines(facts, trial, linked(facts, trial, time_name(bill.hours)), lines)


def _side(facts: Facts, cell: Cell) -> Markup:
    best, trial = cell.best, cell.best.median_run.trial
    lr = peak_lr(best)
    lines = [f"lr {short(lr)}"] if lr is not None else []
    if facts.target is None:
        text = value(best)
    elif cell.reached:
        text = f"{whole(best.steps)} steps"
        lines.insert(0, f"{whole(best.samples)} samples")
    else:
        text = missed(facts, cell)
    lines = [" · ".join(lines)] if lines else []
    if facts.target is not None:
        lines.append(f"{len(best.reached)} of {count(len(best.valid_runs), 'seed')}")
    rest = count_verdicts(cell.outcomes, ("reached", "complete"))
    if rest:
        lines.append(f"{count(len(cell.outcomes), 'run')}: {rest}")
    won = _won(facts, cell)
    first = linked(facts, trial, text) + Markup(' <span class="won">{}</span>' if won else "").format(won)
    return _lines(facts, trial, first, lines)


def _lines(facts: Facts, trial: Trial, first: Markup, lines: Sequence[str]) -> Markup:
    """A cell: its number, and below it in small letters the details."""
    below = [Markup("<br><small>{}</small>").format(link(facts, trial, line)) for line in lines]
    return first + Markup("").join(below)


def missed(facts: Facts, cell: Cell) -> str:
    """The text that replaces the number of a cell without one."""
    if not cell.best.valid_runs:
        return cell.shortfall
    best = small(cell.best_value) if cell.best_value is not None else "not measured"
    return f"{cell.shortfall} (best {facts.measure} {best})"


def _won(facts: Facts, cell: Cell) -> str:
    """Marks the best cell at its batch size, and whether the spreads over the seeds leave it uncertain."""
    if len(facts.series) < 2 or facts.winners.get(cell.batch) is not cell:
        return ""
    others = [other for other in facts.cells if other.batch == cell.batch and other is not cell]
    if not others:
        return ""
    own = _span(facts, cell)
    close = own is not None and any(span[0] <= own[1] for other in others if (span := _span(facts, other)))
    return "best, spreads overlap" if close else "best"


def _span(facts: Facts, cell: Cell) -> tuple[float, float] | None:
    """The best and the worst seed of the best setting, as numbers of which the smaller is better."""
    if facts.target is not None:
        values = [run.steps for run in cell.best.valid_runs] if cell.reached else []
    else:
        values = [-v if facts.metric.at_least else v for v in cell.best.values]
    return (min(values), max(values)) if values else None


def settings(facts: Facts) -> Table:
    """Every setting: its runs, and mean and deviation over the seeds."""
    aimed = facts.target is not None
    rows = []
    for cell in facts.cells:
        for setting in cell.settings:
            trial = setting.median_run.trial
            row: list[str] = [cell.optimizer, f"{cell.batch:,}", *_parameters(facts, setting)]
            if aimed:
                steps = [run.steps for run in setting.reached]
                row.append(
                    linked(facts, trial, whole(setting.steps) if math.isfinite(setting.steps) else setting.shortfall)
                )
                row.append(f"{whole(min(steps))} – {whole(max(steps))}" if len(steps) > 1 else ABSENT)
            rows.append([
                *row, linked(facts, trial, value(setting)), count_verdicts(setting.runs), numbers(facts, setting.runs)
            ])  # fmt: skip
    return Table([
        ("optimizer", "name"), ("batch", "n"), *((key_name(key), "n") for key in facts.keys),
        *([("steps, median", "n"), ("over the seeds", "n")] if aimed else []),
        (f"best {facts.measure}, mean ± deviation", "n"), ("ended", "note"), ("runs", "runs"),
    ], rows)  # fmt: skip


def trials(facts: Facts) -> Table:
    """Every run, in the order of the settings."""
    aimed = facts.target is not None
    rows = [
        [
            numbers(facts, [run]), cell.optimizer, f"{cell.batch:,}", str(run.trial.seed), *_parameters(facts, setting),
            run.verdict, *((link(facts, run.trial, whole(n)) for n in (run.steps, run.samples)) if aimed else ()),
            link(facts, run.trial, small(run.best)), whole(run.last_step),
            duration(run.trial.seconds) if run.trial.seconds else ABSENT,
        ]
        for cell in facts.cells for setting in cell.settings for run in setting.runs
    ]  # fmt: skip
    return Table([
        ("run", "n"), ("optimizer", "name"), ("batch", "n"), ("seed", "n"), *((key_name(key), "n") for key in facts.keys),
        ("ended", "note"), *([("steps to target", "n"), ("samples", "n")] if aimed else []),
        (f"best {facts.measure}", "n"), ("steps run", "n"), ("time", "n"),
    ], rows)  # fmt: skip


def _parameters(facts: Facts, setting: Setting) -> list[str]:
    found = [setting.parameters.get(key) for key in facts.keys]
    return [short(v) if isinstance(v, float) else ABSENT if v is None else str(v) for v in found]
