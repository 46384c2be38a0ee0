"""A chart against the batch size: its axes, the looks of the optimizers, and marks that link to the reports of their runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from bellwether.experiments.analysis.aggregate import Cell
from bellwether.experiments.analysis.outcome import Outcome
from bellwether.experiments.report.facts import Facts, Series
from bellwether.trainer.report.chart import HEIGHT, LIGHT, TEXT, WIDTH, Chart, log_ticks

COLOURS = ("blue", "orange", "green", "plum", "gold", "teal")
_MARKERS = ("o", "s", "^", "D", "v", "P")


class Look(NamedTuple):
    """How a series is drawn; colour and marker together differ for 36 optimizers."""

    colour: str  #: name in the palette
    marker: str
    shift: float  #: factor along the batch sizes, so that its bars stand beside those of the others

    @property
    def light(self) -> str:
        return LIGHT[self.colour]


def colour_of(index: int) -> str:
    """The name of a series' colour in the palette."""
    return COLOURS[index % len(COLOURS)]


class Miss(NamedTuple):
    """A run, or the runs of a cell, that did not reach the target."""

    x: float
    tried: float  #: the most that was tried in the cell; 0 for a single seed
    look: Look
    run: Outcome


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
            yield series, Look(colour_of(index), marker, math.exp(apart * reach * (index - (count - 1) / 2)))

    def key(self, look: Look, label: str) -> None:
        """An entry of the legend."""
        self.ax.plot([], [], color=look.light, marker=look.marker, linewidth=1.6, label=label)

    def bar(self, look: Look, batch: float, values: list[float], **options: Any) -> None:
        """A vertical line over the range of the values."""
        ends = [min(values), max(values)]
        self.ax.plot([batch * look.shift] * 2, ends, color=look.light, **{"linewidth": 1.1, "zorder": 3, **options})

    def median(self, look: Look, batch: float, y: float, run: Outcome) -> None:
        """A large mark for a cell, which links to the run in the middle."""
        (mark,) = self.ax.plot(
            [batch * look.shift], [y], look.marker, color=look.light, markersize=7, markeredgecolor=LIGHT["card"],
            markeredgewidth=1.0, zorder=5,
        )  # fmt: skip
        link(self.facts, mark, run)

    def seed(self, look: Look, batch: float, y: float, run: Outcome) -> None:
        """A small mark for one seed, which links to its run."""
        (mark,) = self.ax.plot(
            [batch * look.shift], [y], "o", color=look.light, markersize=3.2, alpha=0.75, markeredgewidth=0, zorder=4
        )
        link(self.facts, mark, run)

    def values(self, name: str, look: Look, points: list[tuple[Cell, float]], form: Any) -> None:
        """Add values of the cells of a series to the tooltip."""
        self.tip(name, look.colour, [
            (cell.batch * look.shift, value, f"batch {cell.batch:,}", form(value)) for cell, value in points
        ])  # fmt: skip

    def misses(self, missed: list[Miss]) -> None:
        """Crosses at the top edge: for a cell over a dotted line from the most that was tried there, small ones for a seed."""
        if not missed:
            return
        ax = self.ax
        for x, tried, look, _ in missed:
            if tried > 0:
                ax.plot([x], [tried], "_", color=look.light, markersize=7)
        low, high = ax.get_ylim()
        top = high * (high / low) ** 0.08
        ax.set_ylim(low, top)
        for x, tried, look, run in missed:
            if tried > 0:
                ax.plot([x, x], [tried, top], color=look.light, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
            size, width = (7, 1.8) if tried > 0 else (4, 1.1)
            (mark,) = ax.plot(
                [x], [0.97], "x", color=look.light, markersize=size, markeredgewidth=width,
                transform=ax.get_xaxis_transform(), clip_on=False, zorder=6,
            )  # fmt: skip
            link(self.facts, mark, run)
        ax.plot([], [], "x", color=LIGHT["muted"], markersize=6, markeredgewidth=1.6, label="missed")

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
        from matplotlib.ticker import NullLocator

        batches = self.facts.batches
        if not batches:
            return
        low, high = math.log(batches[0]), math.log(batches[-1])
        pad = 0.06 * (high - low) or 0.5
        self.ax.set_xlim(math.exp(low - pad), math.exp(high + pad))
        letters = 0.62 * len(f"{batches[-1]:,}") + 1.5  # a letter is about 0.62 of its height wide
        room = (high - low + 2 * pad) * letters * TEXT / (WIDTH - 60)
        shown: list[int] = []
        for batch in batches:
            if not shown or math.log(batch / shown[-1]) >= room:
                shown.append(batch)
        self.ax.xaxis.set_minor_locator(NullLocator())
        self.ax.set_xticks(shown, [f"{batch:,}" for batch in shown])


def link(facts: Facts, mark: Any, run: Outcome) -> None:
    """Make a mark link to the report of its run."""
    url = facts.link(run.trial)
    if url is not None:
        mark.set_url(url)
