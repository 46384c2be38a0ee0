"""A chart against the batch size: its axes, the looks of the optimizers, and marks that link to the reports of their runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from bellwether.experiments.analysis.aggregate import Cell
from bellwether.experiments.analysis.outcome import Outcome
from bellwether.experiments.report.facts import Facts, Series
from bellwether.trainer.report.chart import HEIGHT, LETTER, LIGHT, TEXT, WIDTH, Chart, log_ticks

COLOURS = ("blue", "orange", "green", "plum", "gold", "teal")
_MARKERS = ("o", "s", "^", "D", "v", "P")


Points = Sequence[tuple[Cell, float]]


class Look(NamedTuple):
    """How a series is drawn; colour and marker together differ for 36 optimizers."""

    name: str
    colour: str  #: in the palette
    marker: str
    shift: float  #: factor along the batch sizes, so that its bars stand beside those of the others

    @property
    def light(self) -> str:
        return LIGHT[self.colour]


class Mark(NamedTuple):
    """A value of a run, or of a cell that the run represents."""

    x: float
    y: float
    run: Outcome
    colour: str


class BatchChart(Chart):
    """A chart over batch sizes, logarithmic in x and, unless `log` is False, in y."""

    def __init__(self, facts: Facts, height: float = HEIGHT, *, log: bool = True) -> None:
        super().__init__("batch", height)
        self.facts = facts
        self.ax.set_xscale("log")
        if log:
            self.ax.set_yscale("log")
        self._batch_ticks()

    def series(self) -> Iterator[tuple[Series, Look]]:
        batches, count = self.facts.batches, len(self.facts.series)
        reach = math.log(batches[-1] / batches[0]) or 1.0
        apart = 0.008 * min(1.0, 2 / max(1, count - 1))
        for index, series in enumerate(self.facts.series):
            marker = _MARKERS[(index + index // len(COLOURS)) % len(_MARKERS)]
            shift = math.exp(apart * reach * (index - (count - 1) / 2))
            yield series, Look(series.name, COLOURS[index % len(COLOURS)], marker, shift)

    def curve(
        self, look: Look, points: Points, form: Callable[[float], str], *, line: bool = True, note: str = ""
    ) -> None:
        """Large marks for cells, linked to the middle run, with a line, a tooltip and an entry of the legend."""
        marks = [Mark(cell.batch * look.shift, y, cell.best.median_run, look.light) for cell, y in points]
        if line:
            self.ax.plot([mark.x for mark in marks], [mark.y for mark in marks], color=look.light)
        self.marks(marks, look.marker, 7, edgecolors=LIGHT["card"], linewidths=1.0, zorder=5)
        self.ax.plot([], [], color=look.light, marker=look.marker, label=look.name + note)
        self.tip(look.name, look.colour, [
            (mark.x, mark.y, f"batch {cell.batch:,}", form(mark.y))
            for (cell, _), mark in zip(points, marks, strict=True)
        ])  # fmt: skip

    def seeds(self, look: Look, points: Sequence[tuple[Cell, float, Outcome]]) -> None:
        """A small mark for each seed, which links to its run, and a vertical line over the range of each cell."""
        marks = [Mark(cell.batch * look.shift, y, run, look.light) for cell, y, run in points]
        self.marks(marks, "o", 3.2, alpha=0.75, linewidths=0, zorder=4)
        for x, group in groupby(marks, lambda mark: mark.x):
            values = [mark.y for mark in group]
            self.ax.plot([x, x], [min(values), max(values)], color=look.light, linewidth=1.1, zorder=3)

    def marks(self, marks: Sequence[Mark], marker: str, size: float, **options: Any) -> None:
        """Marks that link to the reports of their runs."""
        x, y, colours = ([mark[i] for mark in marks] for i in (0, 1, 3))
        found = self.ax.scatter(x, y, size**2, colours, marker=marker, **options)
        found.set_urls([self.facts.link(mark.run.trial) for mark in marks])

    def misses(self, cells: Sequence[Mark], seeds: Sequence[Mark]) -> None:
        """Crosses at the top edge: for cells, over a line from the most that was tried; small ones for seeds."""
        if not cells and not seeds:
            return
        x, tried, _, colours = np.array(cells, dtype=object).reshape(-1, 4).T.tolist()
        self.ax.scatter(x, tried, 7**2, colours, marker="_", linewidths=1.0)
        low, high = self.ax.get_ylim()
        top = high * (high / low) ** 0.08
        self.ax.vlines(x, tried, top, colours, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
        self.ax.set_ylim(low, top)
        for marks, size, width in ((cells, 7, 1.8), (seeds, 4, 1.1)):
            top_edge = {"transform": self.ax.get_xaxis_transform(), "clip_on": False}
            self.marks([mark._replace(y=0.97) for mark in marks], "x", size, linewidths=width, zorder=6, **top_edge)
        self.ax.plot([], [], "x", color=LIGHT["muted"], markersize=6, markeredgewidth=1.6, label="missed")

    def finish(self) -> BatchChart:
        """Ticks of the logarithmic y axis, and the legend."""
        low, high = self.ax.get_ylim()
        # At least a factor of two high: noise that fills the height would look like a trend.
        wider = max(1.0, math.sqrt(2 * low / high))
        self.ax.set_ylim(low / wider, high * wider)
        log_ticks(self.ax.yaxis, *self.ax.get_ylim())
        self.legend()
        return self

    def _batch_ticks(self) -> None:
        """The batch sizes that were run, as far as their labels have room."""
        batches = self.facts.batches
        low, high = math.log(batches[0]), math.log(batches[-1])
        pad = 0.06 * (high - low) or 0.5
        self.ax.set_xlim(math.exp(low - pad), math.exp(high + pad))
        room = (high - low + 2 * pad) * (LETTER * len(f"{batches[-1]:,}") + 1.5) * TEXT / (WIDTH - 60)
        shown = batches[:1]
        for batch in batches:
            if math.log(batch / shown[-1]) >= room:
                shown.append(batch)
        self.ax.set_xticks(shown, [f"{batch:,}" for batch in shown])
        self.ax.set_xticks([], minor=True)
