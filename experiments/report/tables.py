"""The tables of a sweep's report, as HTML: each number leads to the report of its run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from bellwether.experiments.analysis import fitting
from bellwether.experiments.analysis.aggregate import Cell, Setting, peak_lr
from bellwether.experiments.analysis.outcome import Outcome, count_verdicts
from bellwether.experiments.report.facts import Facts, Series, time_unit, whole
from bellwether.experiments.report.lr_scaling import power
from bellwether.experiments.report.panels import key_name
from bellwether.experiments.sweep.measurements import Trial
from bellwether.trainer.progress import duration
from bellwether.trainer.report.facts import ABSENT, count, number
from bellwether.trainer.report.markup import Html, folded, safe, table


def linked(facts: Facts, trial: Trial, text: str) -> Html:
    """Text that leads to a run's report; with the trial's number behind it where there is no report."""
    there = facts.link(trial) is not None
    said = linked_small(facts, trial, text)
    return said if there else Html(f'{said} <small class="trial">#{trial.trial}</small>')


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
    """Mean and deviation of the metric over the seeds."""
    if setting.mean is None:
        return ABSENT
    return small(setting.mean) + (f" ± {setting.std:.2g}" if setting.std is not None else "")


def fits(facts: Facts) -> str:
    """What each optimizer's curve came to, the runs that it went through, and what to know of it."""
    rows = []
    for series in facts.series:
        fit = series.fit
        if fit is not None:
            largest = max(cell.batch for cell in series.cells if cell.reached)
            rows.append((
                series.name, fitting.size(fit, largest), fitting.span(fit, largest) or ABSENT, whole(fit.s_min),
                f"{100 * fit.spread:.1f} %", str(fit.batches), _runs(facts, series),
            ))  # fmt: skip
    labels = ("optimizer", "B_crit", "90 % interval", "S_min, samples", "distance of a run", "batches", "runs")
    head = [(label, "name" if i == 0 else "runs" if i == 6 else "n") for i, label in enumerate(labels)]
    return (table(head, rows) if rows else "") + notes([(s.name, note) for s in facts.series for note in s.notes])


def _runs(facts: Facts, series: Series) -> Html:
    runs = [run for cell in series.cells if cell.reached for run in cell.best.reached]
    return Html(" ".join(_number(facts, run) for run in runs))


def _number(facts: Facts, run: Outcome) -> Html:
    """The number of a trial, which leads to its report."""
    return linked_small(facts, run.trial, f"#{run.trial.trial}")


def notes(said: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<li><b>{escape(name)}</b>: {escape(text)}</li>" for name, text in said)
    return f'<ul class="notes">{rows}</ul>' if rows else ""


def laws(facts: Facts) -> str:
    """Best lr at each batch, and the exponent through them."""
    found = [(series, series.law) for series in facts.series if series.law is not None]
    rows = []
    for series, law in found:
        cells = {cell.batch: cell for cell in series.cells}
        best = Html(
            ", ".join(
                f"{batch:,}: {linked(facts, cells[batch].best.median_run.trial, short(lr))}"
                for batch, lr in zip(law.batches, law.lrs, strict=True)
            )
        )
        span = f"{power(law.interval[0])} to {power(law.interval[1])}" if law.interval else ABSENT
        rows.append(
            (series.name, ABSENT if law.exponent is None else power(law.exponent), number(law.error, ".2f"), span, best)
        )
    head = [
        ("optimizer", "name"),
        ("exponent", "n"),
        ("error", "n"),
        ("90 % interval", "n"),
        ("best lr, by batch", "runs"),
    ]
    said = [(series.name, note) for series, law in found for note in law.notes]
    return (table(head, rows) if rows else "") + notes(said)


def bills(facts: Facts) -> str:
    """Time to the target, and cost where there is a price: a row a batch, a column an optimizer."""
    return _matrix(facts, _bill) if any(facts.bill(cell) for cell in facts.cells) else ""


def _bill(facts: Facts, cell: Cell) -> Html:
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


def sides(facts: Facts) -> str:
    """A row a batch, a column an optimizer; the best of each row is marked."""
    return _matrix(facts, _side)


def _matrix(facts: Facts, show: Callable[[Facts, Cell], Html]) -> str:
    names = [series.name for series in facts.series]
    at = {(cell.batch, cell.optimizer): cell for cell in facts.cells}
    rows = [
        [f"{batch:,}", *(show(facts, at[batch, name]) if (batch, name) in at else "not run" for name in names)]
        for batch in facts.batches
    ]
    body = table([("batch", "n"), *((name, "") for name in names)], rows)
    return body.replace('class="scroll"', 'class="scroll sides"', 1)


def _side(facts: Facts, cell: Cell) -> Html:
    best, trial = cell.best, cell.best.median_run.trial
    lr = peak_lr(best)
    lines = [f"lr {short(lr)}"] if lr is not None else []
    if facts.target is None:
        first = linked(facts, trial, value(best))
    elif cell.reached:
        first = linked(facts, trial, f"{whole(best.steps)} steps")
        lines.insert(0, f"{whole(best.samples)} samples")
    else:
        first = linked(facts, trial, missed(facts, cell))
    lines = [" · ".join(lines)] if lines else []
    if facts.target is not None:
        lines.append(f"{len(best.reached)} of {count(len(best.valid_runs), 'seed')}")
    rest = count_verdicts(cell.outcomes, ("reached", "complete"))
    if rest:
        lines.append(f"{count(len(cell.outcomes), 'run')}: {rest}")
    won = _won(facts, cell)
    return _lines(facts, trial, Html(f'{first} <span class="won">{won}</span>') if won else first, lines)


def _lines(facts: Facts, trial: Trial, first: Html, lines: Sequence[str]) -> Html:
    """A cell: its number, and below it in small letters what belongs to it."""
    return Html(first + "".join(f"<br><small>{linked_small(facts, trial, line)}</small>" for line in lines))


def linked_small(facts: Facts, trial: Trial, text: str) -> Html:
    """As `linked`, without the trial's number: it stands above already."""
    url = facts.link(trial)
    return Html(safe(text) if url is None else f'<a href="{escape(url, quote=True)}">{safe(text)}</a>')


def missed(facts: Facts, cell: Cell) -> str:
    """What stands in the place of a number that there is not."""
    if not cell.best.valid_runs:
        return cell.shortfall
    best = small(cell.best_value) if cell.best_value is not None else "not measured"
    return f"{cell.shortfall} (best {facts.measure} {best})"


def _won(facts: Facts, cell: Cell) -> str:
    """Whether the cell is the best at its batch, and whether the seeds make that sure."""
    if len(facts.series) < 2 or facts.winners.get(cell.batch) is not cell:
        return ""
    others = [other for other in facts.cells if other.batch == cell.batch and other is not cell]
    if not others:
        return ""
    mine, theirs = _span(facts, cell), [span for other in others if (span := _span(facts, other))]
    close = mine is not None and any(span[0] <= mine[1] for span in theirs)
    return "best, spreads overlap" if close else "best"


def _span(facts: Facts, cell: Cell) -> tuple[float, float] | None:
    """The least and the most over the seeds of the best setting; less is better."""
    if facts.target is not None:
        values = [run.steps for run in cell.best.valid_runs] if cell.reached else []
    else:
        values = [-v if facts.metric.at_least else v for v in cell.best.values]
    return (min(values), max(values)) if values else None


def settings(facts: Facts) -> str:
    """Every setting: its runs, and mean and deviation over the seeds."""
    rows = []
    for cell in facts.cells:
        for setting in cell.settings:
            trial = setting.median_run.trial
            row: list[str] = [cell.optimizer, f"{cell.batch:,}", *_parameters(facts, setting)]
            if facts.target is not None:
                steps = [run.steps for run in setting.reached]
                row.append(
                    linked(facts, trial, whole(setting.steps) if math.isfinite(setting.steps) else setting.shortfall)
                )
                row.append(f"{whole(min(steps))} – {whole(max(steps))}" if len(steps) > 1 else ABSENT)
            row += [linked(facts, trial, value(setting)), count_verdicts(setting.runs)]
            row.append(Html(" ".join(_number(facts, run) for run in setting.runs)))
            rows.append(row)
    aimed = [("steps, median", "n"), ("over the seeds", "n")] if facts.target is not None else []
    head = [
        ("optimizer", "name"), ("batch", "n"), *((key_name(key), "n") for key in facts.keys), *aimed,
        (f"best {facts.measure}, mean ± deviation", "n"), ("ended", "note"), ("runs", "runs"),
    ]  # fmt: skip
    return _folded("Settings", f"{count(len(rows), 'setting')}, the best of each batch first", head, rows)


def trials(facts: Facts) -> str:
    """Every run, in the order of the settings."""
    rows = []
    for cell in facts.cells:
        for setting in cell.settings:
            for run in setting.runs:
                trial = run.trial
                row: list[str] = [_number(facts, run), cell.optimizer, f"{cell.batch:,}", str(trial.seed)]
                row += [*_parameters(facts, setting), run.verdict]
                if facts.target is not None:
                    reached = math.isfinite(run.steps)
                    row += [
                        linked_small(facts, trial, whole(n)) if reached else ABSENT for n in (run.steps, run.samples)
                    ]
                    row[-2:] = [Html(text) for text in row[-2:]]
                row.append(Html(linked_small(facts, trial, small(run.best))))
                row += [whole(run.last_step), duration(trial.seconds) if trial.seconds else ABSENT]
                rows.append(row)
    aimed = [("steps to target", "n"), ("samples", "n")] if facts.target is not None else []
    head = [
        ("run", "n"), ("optimizer", "name"), ("batch", "n"), ("seed", "n"), *((key_name(key), "n") for key in facts.keys),
        ("ended", "note"), *aimed, (f"best {facts.measure}", "n"), ("steps run", "n"), ("time", "n"),
    ]  # fmt: skip
    return _folded("Runs", f"all {len(rows):,}", head, rows)


def _parameters(facts: Facts, setting: Setting) -> list[str]:
    found = [setting.parameters.get(key) for key in facts.keys]
    return [short(v) if isinstance(v, float) else ABSENT if v is None else str(v) for v in found]


def _folded(title: str, note: str, head: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    return folded(title, note, table(head, rows)) if rows else ""
