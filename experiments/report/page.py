"""The page of a sweep's report: its sections, headlines and the texts that explain them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from bellwether.experiments.analysis import fitting
from bellwether.experiments.analysis.aggregate import Cell, peak_lr
from bellwether.experiments.report import tables
from bellwether.experiments.report.facts import Facts
from bellwether.trainer.report.chart import Drawn
from bellwether.trainer.report.curves import significant
from bellwether.trainer.report.facts import ABSENT, count, whole
from bellwether.trainer.report.html import Table, render

KIND = "report of a sweep"  #: these words identify a page as one of ours
Headline = tuple[str, str, str, str]


@dataclass(frozen=True)
class Section:
    key: str
    heading: str
    text: str = ""  #: how to read it
    table: Table | None = None
    notes: Sequence[tuple[str, str]] = ()
    drawn: Sequence[Drawn] = field(default=())


def page(facts: Facts, drawn: Mapping[str, Sequence[Drawn]]) -> str:
    """The whole document; `drawn`: the pictures of each section, by its key."""
    workloads = {
        f"{trial.model} on {trial.dataset}".removesuffix(" on ").removeprefix(" on ") for trial in facts.trials
    }
    about = [
        *sorted(workload for workload in workloads if workload)[:3],
        ", ".join(series.name for series in facts.series),
        f"batch {facts.batches[0]:,} to {facts.batches[-1]:,}" if len(facts.batches) > 1 else "",
        f"target {facts.target}" if facts.target else "",
    ]
    return render(
        "sweep.html", Path(__file__).with_name("templates"), title=facts.name, kind=KIND, about=about,
        state="nothing run" if not facts.trials else "unfinished" if facts.unfinished else "finished",
        missing=facts.notes, headlines=_headlines(facts), b_crits=_b_crits(facts),
        sections=_sections(facts, drawn) if facts.trials else [],
        settings=tables.settings(facts), trials=tables.trials(facts),
    )  # fmt: skip


def _sections(facts: Facts, drawn: Mapping[str, Sequence[Drawn]]) -> list[Section]:
    """The sections that have something to show."""
    aimed, several = facts.target is not None, len(facts.series) > 1
    fit_notes = [(series.name, note) for series in facts.series for note in series.notes]
    law_notes = [(series.name, note) for series in facts.series if series.law for note in series.law.notes]
    sections = [
        Section("target", "Steps and samples to the target" if aimed else f"Best {facts.measure}", _reading(facts), tables.fits(facts), fit_notes),
        Section("rates", "Best learning rate", "", tables.laws(facts), law_notes),
        Section("bills", "Time and cost" if facts.price is not None else "Time", _priced(facts), tables.bills(facts) if aimed else None),
        Section("sides", "Optimizers side by side" if several else "By batch", _counts(facts), tables.sides(facts)),
        Section("heat", "Two hyperparameters at once"),
        Section("courses", "Learning curves of the best settings"),
    ]  # fmt: skip
    found = []
    for each in sections:
        shown = [picture for picture in drawn.get(each.key, ()) if picture.svg is not None]
        if shown or each.notes or (each.table and each.table.rows):
            found.append(Section(each.key, each.heading, each.text, each.table, each.notes, shown))
    return found


def _reading(facts: Facts) -> str:
    seeds = {len(setting.runs) for cell in facts.cells for setting in cell.settings}
    rule = "The best is chosen among the settings that ran on the most seeds." if len(seeds) > 1 else ""
    if facts.target is None:
        return f"Mean over the seeds of the best setting at each batch; bars and small dots are the seeds. {rule}"
    missed = any(math.isinf(run.steps) for cell in facts.cells for run in cell.best.valid_runs)
    return (
        "The best setting at each batch: the median over its seeds, their range, and each seed as a small dot. "
        f"{'A seed that missed the target counts as infinitely many steps. ' if missed else ''}{rule}"
    )


def _counts(facts: Facts) -> str:
    if facts.target is None:
        return "The best setting at each batch, then how the runs of all settings ended."
    return "The best setting at each batch and how many of its seeds reached the target, then how the runs of all settings ended."


def _priced(facts: Facts) -> str:
    if facts.target is None:
        return ""
    given = facts.throughput.given is not None
    source = (
        "as given for one process, times their number" if given else "the median of train/samples_per_s in each run"
    )
    price = "" if facts.price is None else f" Cost is hours times processes times {facts.price:g} per hour."
    alone = "" if given else " This is training alone, without start, evaluation and saving."
    return f"Samples to the target divided by samples per second, {source}.{alone}{price}"


def _headlines(facts: Facts) -> list[Headline]:
    ended = ", ".join(f"{number:,} {verdict}" for verdict, number in facts.verdicts.items())
    rows: list[Headline] = [("Runs", f"{len(facts.trials):,}", f"of {facts.planned:,}" if facts.to_come else "", ended)]
    if facts.target is None:
        rows.append(("Compared by", facts.measure, "", "more is better" if facts.metric.at_least else "less is better"))
        best = min(facts.cells, key=lambda cell: cell.best.distance, default=None)
        if best is not None and best.best.mean is not None:
            run = tables.linked(facts, best.best.median_run.trial, significant(best.best.mean))
            rows.append((f"Best {facts.measure}", run, "", _where(best)))
        return rows
    beyond = "more" if facts.metric.at_least else "less"
    rows.append(("Target", f"{facts.target.value:g}", "", f"{facts.measure}, or {beyond}"))
    held = [cell for cell in facts.cells if cell.reached]
    for label, key in (("Fewest steps", "steps"), ("Fewest samples", "samples")):
        best = min(held, key=lambda cell: getattr(cell.best, key), default=None)
        text = ABSENT if best is None else _linked(facts, best, whole(getattr(best.best, key)))
        rows.append((label, text, "", "nothing reached it" if best is None else _where(best)))
    times = [(bill.hours, cell) for cell in held if (bill := facts.bill(cell)) and math.isfinite(bill.hours)]
    if times:
        hours, best = min(times, key=lambda pair: pair[0])
        rows.append(
            ("Least time", _linked(facts, best, tables.time_name(hours)), "", f"training alone; {_where(best)}")
        )
    return rows


def _b_crits(facts: Facts) -> list[Headline]:
    """The critical batch size of each optimizer."""
    rows: list[Headline] = []
    for series in facts.series:
        fit = series.fit
        if fit is None:
            continue
        largest = max(cell.batch for cell in series.cells if cell.reached)
        span = fitting.span(fit, largest)
        below = f"{span}, 90 %" if span else "no interval"
        if series.notes:
            below = Markup('{} · <a href="#target">{}</a>').format(below, count(len(series.notes), "warning"))
        rows.append((f"B_crit, {series.name}", fitting.size(fit, largest), "", below))
    return rows


def _linked(facts: Facts, cell: Cell, text: str) -> Markup:
    return tables.link(facts, cell.best.median_run.trial, text)


def _where(cell: Cell) -> str:
    lr = peak_lr(cell.best)
    return f"{cell.optimizer}, batch {cell.batch:,}" + (f", lr {tables.short(lr)}" if lr is not None else "")
