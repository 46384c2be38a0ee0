"""What the pictures against the batch have in common: axes, looks of the optimizers, marks that lead to their runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bellwether.experiments.analysis.outcome import Outcome
from bellwether.experiments.report.facts import Facts, Series
from bellwether.trainer.report.canvas import LIGHT, Size, legend, log_ticks, plain, sheet
from bellwether.trainer.report.facts import compact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("blue", "orange", "green", "plum", "gold", "teal")
_MARKERS = ("o", "s", "^", "D", "v", "P")


def colour_of(index: int) -> str:
    return LIGHT[COLOURS[index % len(COLOURS)]]


def marker(index: int) -> str:
    """With the colour, another look for each of 36 optimizers."""
    return _MARKERS[(index + index // len(COLOURS)) % len(_MARKERS)]


def placed(facts: Facts) -> Iterator[tuple[Series, float]]:
    """Each series, and how far to move it along the batches, so that its bars stand beside those of the others."""
    reach = math.log(facts.batches[-1] / facts.batches[0]) or 1.0
    apart = 0.008 * min(1.0, 2 / max(1, len(facts.series) - 1))
    for index, series in enumerate(facts.series):
        yield series, math.exp(apart * reach * (index - (len(facts.series) - 1) / 2))


def board(facts: Facts, size: Size, title: str, log: bool = True) -> tuple[Figure, Axes]:
    """Axes over the batches; logarithmic in y too, unless told otherwise."""
    figure = sheet(size, title)
    ax = figure.add_subplot()
    plain(ax, size, "batch")
    ax.set_xscale("log")
    if log:
        ax.set_yscale("log")
    batch_ticks(ax, facts.batches, size)
    return figure, ax


def batch_ticks(ax: Axes, batches: list[int], size: Size) -> None:
    """The batches that were run, as far as their names have room."""
    from matplotlib.ticker import NullLocator

    if not batches:
        return
    low, high = math.log(batches[0]), math.log(batches[-1])
    pad = 0.06 * (high - low) or 0.5
    ax.set_xlim(math.exp(low - pad), math.exp(high + pad))
    wide = 0.62 * len(f"{batches[-1]:,}") + 1.5  # letters are about 0.62 as wide as high
    room = (high - low + 2 * pad) * wide * size.text / (size.width - 60)
    shown: list[int] = []
    for batch in batches:
        if not shown or math.log(batch / shown[-1]) >= room:
            shown.append(batch)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(shown, [f"{batch:,}" for batch in shown])


def dot(facts: Facts, ax: Axes, index: int, x: float, y: float, run: Outcome, small: bool = False) -> None:
    """A run's mark: large for a median, small for a seed."""
    colour = colour_of(index)
    if small:
        (mark,) = ax.plot([x], [y], "o", color=colour, markersize=3.2, alpha=0.75, markeredgewidth=0, zorder=4)
    else:
        (mark,) = ax.plot(
            [x], [y], marker(index), color=colour, markersize=7, markeredgecolor=LIGHT["card"],
            markeredgewidth=1.0, zorder=5,
        )  # fmt: skip
    address(facts, mark, run)


def address(facts: Facts, mark: object, run: Outcome) -> None:
    """A mark that leads to its run's report."""
    url = facts.link(run.trial)
    if url is not None:
        mark.set_url(url)  # type: ignore[attr-defined]


def crosses(facts: Facts, ax: Axes, missed: list[tuple[float, float, int, Outcome]]) -> None:
    """Crosses at the top edge, for a cell over a dotted line from the most that was tried there, small ones for a seed."""
    if not missed:
        return
    for x, y, index, _ in missed:
        if y > 0:
            ax.plot([x], [y], "_", color=colour_of(index), markersize=7)
    low, high = ax.get_ylim()
    top = high * (high / low) ** 0.08
    ax.set_ylim(low, top)
    for x, y, index, run in missed:
        colour = colour_of(index)
        if y > 0:
            ax.plot([x, x], [y, top], color=colour, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
        mark = ax.plot(
            [x], [0.97], "x", color=colour, markersize=7 if y > 0 else 4, markeredgewidth=1.8 if y > 0 else 1.1,
            transform=ax.get_xaxis_transform(), clip_on=False, zorder=6,
        )  # fmt: skip
        address(facts, mark[0], run)
    ax.plot([], [], "x", color=LIGHT["muted"], markersize=6, markeredgewidth=1.6, label="missed")


def finish(figure: Figure, ax: Axes, size: Size) -> Figure:
    """Ticks of the logarithmic y, at least a factor of two high, and the legend."""
    from matplotlib.ticker import FuncFormatter

    low, high = ax.get_ylim()
    # Noise that fills the height would look like a trend.
    wider = max(1.0, math.sqrt(2 * low / high))
    ax.set_ylim(low / wider, high * wider)
    log_ticks(ax.yaxis, *ax.get_ylim())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    legend(ax, size)
    return figure
