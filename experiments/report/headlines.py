"""The tiles at the top of a sweep's report."""

from __future__ import annotations

import math

from markupsafe import Markup

from bellwether.experiments.analysis import fitting
from bellwether.experiments.analysis.aggregate import Cell, peak_lr
from bellwether.experiments.report import tables
from bellwether.experiments.report.facts import Facts
from bellwether.trainer.report.facts import ABSENT, count, significant, whole
from bellwether.trainer.report.html import Tile


def results(facts: Facts) -> list[Tile]:
    """The number of runs and the best results."""
    ended = ", ".join(f"{number:,} {verdict}" for verdict, number in facts.verdicts.items())
    runs = ("Runs", f"{len(facts.trials):,}", f"of {facts.planned:,}" if facts.to_come else "", ended)
    better = "more" if facts.metric.at_least else "less"
    held = [cell for cell in facts.cells if facts.has_result(cell)]
    if facts.target is None:
        tiles = [runs, ("Compared by", facts.measure, "", f"{better} is better")]
        if held:
            best = min(held, key=lambda cell: cell.best.distance)
            mean = tables.linked(facts, best.best.median_run.trial, significant(best.best.mean))
            tiles.append((f"Best {facts.measure}", mean, "", _where(best)))
        return tiles
    tiles = [runs, ("Target", f"{facts.target.value:g}", "", f"{facts.measure}, or {better}")]
    for key in ("steps", "samples"):
        tile = (ABSENT, "", "nothing reached it")
        if held:
            best = min(held, key=lambda cell: getattr(cell.best, key))
            tile = (_link(facts, best, whole(getattr(best.best, key))), "", _where(best))
        tiles.append((f"Fewest {key}", *tile))
    times = [(bill.hours, cell) for cell in held if (bill := facts.bill(cell)) and math.isfinite(bill.hours)]
    if times:
        hours, best = min(times, key=lambda pair: pair[0])
        tiles.append(("Least time", _link(facts, best, tables.time_name(hours)), "", f"training alone; {_where(best)}"))
    return tiles


def b_crits(facts: Facts) -> list[Tile]:
    """The critical batch size of each optimizer."""
    tiles = []
    for series in facts.series:
        if series.fit is not None:
            span = fitting.span(series.fit, series.largest)
            below = f"{span}, 90 %" if span else "no interval"
            if series.notes:
                below = Markup('{} · <a href="#target">{}</a>').format(below, count(len(series.notes), "warning"))
            tiles.append((f"B_crit, {series.name}", fitting.size(series.fit, series.largest), "", below))
    return tiles


def _link(facts: Facts, cell: Cell, text: str) -> Markup:
    return tables.link(facts, cell.best.median_run.trial, text)


def _where(cell: Cell) -> str:
    lr = peak_lr(cell.best)
    return f"{cell.optimizer}, batch {cell.batch:,}" + (f", lr {significant(lr, 3)}" if lr is not None else "")
