"""The page of a sweep's report: HTML from facts and pictures. Everything that comes from a sweep is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from bellwether.experiments.analysis import fitting
from bellwether.experiments.analysis.aggregate import Cell, peak_lr
from bellwether.experiments.report import tables
from bellwether.experiments.report.facts import Facts, whole
from bellwether.trainer.report.canvas import Drawn
from bellwether.trainer.report.facts import ABSENT, count
from bellwether.trainer.report.markup import Html, document, figures, head, tiles

KIND = "report of a sweep"  # by these words a page is known for ours


def page(facts: Facts, drawn: Mapping[str, Sequence[Drawn]]) -> str:
    """The whole document; `drawn`: the pictures of each section, by its key."""
    ended = ("unfinished", "") if facts.unfinished else ("finished", "finished")
    state = ended if facts.trials else ("nothing run", "")
    workloads = {
        f"{trial.model} on {trial.dataset}".removesuffix(" on ").removeprefix(" on ") for trial in facts.trials
    }
    about = [
        *sorted(workload for workload in workloads if workload)[:3],
        ", ".join(series.name for series in facts.series),
        f"batch {facts.batches[0]:,} to {facts.batches[-1]:,}" if len(facts.batches) > 1 else "",
        f"target {facts.target}" if facts.target else "",
    ]
    parts = [head(KIND, facts.name, state, about, facts.notes), _headlines(facts), _crits(facts)]
    aimed = facts.target is not None
    sections = [
        ("target", "Steps and samples to the target" if aimed else f"Best {facts.measure}", _reading(facts), tables.fits(facts)),
        ("rates", "Best learning rate", "", tables.laws(facts)),
        ("bills", "Time and cost" if facts.price is not None else "Time", _priced(facts), tables.bills(facts) if aimed else ""),
        ("sides", "Optimizers side by side" if len(facts.series) > 1 else "By batch", _counts(facts), tables.sides(facts)),
        ("heat", "Two hyperparameters at once", "", ""),
        ("courses", "Learning curves of the best settings", "", ""),
        ("tables", "All numbers", "", tables.settings(facts) + tables.trials(facts)),
    ]  # fmt: skip
    for key, heading, text, inner in sections if facts.trials else []:
        pictures = [picture for picture in drawn.get(key, ()) if picture.desk is not None]
        if pictures or inner:
            said = f'<p class="reading">{escape(text)}</p>' if text else ""
            parts.append(f'<section id="{key}"><h2>{escape(heading)}</h2>{said}{figures(pictures)}{inner}</section>')
    parts.append(
        "<footer>Bellwether. Points in pictures and numbers in tables lead to the report of their run; where it has none, to "
        "its directory."
        "</footer>"
    )
    return document(facts.name, parts)


def _reading(facts: Facts) -> str:
    if facts.target is None:
        return (
            f"Mean over the seeds of the best setting at each batch; bars and small dots are the seeds. {_rule(facts)}"
        )
    return (
        "Of the best setting at each batch: the median over its seeds, their range, and each seed as a small dot. "
        f"{_misses(facts)}{_rule(facts)}"
    )


def _misses(facts: Facts) -> str:
    missed = any(math.isinf(run.steps) for cell in facts.cells for run in cell.best.valid_runs)
    return "A seed that missed the target counts as infinitely many steps. " if missed else ""


def _rule(facts: Facts) -> str:
    seeds = {len(setting.runs) for cell in facts.cells for setting in cell.settings}
    return "The best is sought among the settings that ran on the most seeds." if len(seeds) > 1 else ""


def _counts(facts: Facts) -> str:
    if facts.target is None:
        return "Of the best setting at each batch; then how the runs of all settings there ended."
    return "Of the best setting at each batch, how many of its seeds got there; then how the runs of all settings there ended."


def _priced(facts: Facts) -> str:
    if facts.target is None:
        return ""
    source = (
        "as measured, the median of train/samples_per_s in each run"
        if facts.throughput.given is None
        else "as given, of one process times their number"
    )
    price = "" if facts.price is None else f" Cost is hours times processes times {facts.price:g} an hour."
    alone = "That is training alone, without start, evaluation and saving." if facts.throughput.given is None else ""
    return f"Samples to the target over samples a second, {source}. {alone}{price}"


def _headlines(facts: Facts) -> str:
    ended = ", ".join(f"{number:,} {verdict}" for verdict, number in facts.verdicts.items())
    rows: list[tuple[str, str, str, str]] = [("Runs", f"{len(facts.trials):,}", _of(facts), ended)]
    if facts.target is None:
        rows.append(("Compared by", facts.measure, "", "more is better" if facts.metric.at_least else "less is better"))
        best = min(facts.cells, key=lambda cell: cell.best.distance, default=None)
        if best is not None and best.best.mean is not None:
            run = tables.linked(facts, best.best.median_run.trial, tables.small(best.best.mean))
            rows.append((f"Best {facts.measure}", run, "", _where(best)))
    else:
        rows.append(("Target", f"{facts.target.value:g}", "", f"{facts.measure}, or {_beyond(facts)}"))
        held = [cell for cell in facts.cells if cell.reached]
        for label, key in (("Fewest steps", "steps"), ("Fewest samples", "samples")):
            best = min(held, key=lambda cell: getattr(cell.best, key), default=None)
            text = Html(ABSENT) if best is None else _headline(facts, best, whole(getattr(best.best, key)))
            rows.append((label, text, "", "nothing reached it" if best is None else _where(best)))
        cells = [(bill.hours, cell) for cell in held if (bill := facts.bill(cell)) and math.isfinite(bill.hours)]
        if cells:
            hours, best = min(cells, key=lambda pair: pair[0])
            rows.append(
                ("Least time", _headline(facts, best, tables.time_name(hours)), "", f"training alone; {_where(best)}")
            )
    return tiles(rows)


def _of(facts: Facts) -> str:
    return f"of {facts.planned:,}" if facts.to_come else ""


def _headline(facts: Facts, cell: Cell, text: str) -> Html:
    return tables.linked_small(facts, cell.best.median_run.trial, text)


def _crits(facts: Facts) -> str:
    """A tile an optimizer: its critical batch."""
    rows: list[tuple[str, str, str, str]] = []
    for series in facts.series:
        fit = series.fit
        if fit is None:
            continue
        largest = max(cell.batch for cell in series.cells if cell.reached)
        span = fitting.span(fit, largest)
        said = f"{span}, 90 %" if span else "no interval"
        doubts = Html(f'{said} · <a href="#target">{count(len(series.notes), "warning")}</a>') if series.notes else said
        rows.append((f"B_crit, {series.name}", fitting.size(fit, largest), "", doubts))
    return tiles(rows) if rows else ""


def _beyond(facts: Facts) -> str:
    return "more" if facts.metric.at_least else "less"


def _where(cell: Cell) -> str:
    lr = peak_lr(cell.best)
    return f"{cell.optimizer}, batch {cell.batch:,}" + (f", lr {tables.short(lr)}" if lr is not None else "")
