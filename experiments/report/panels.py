"""Heat maps of two hyperparameters, and the learning curves of the best settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bellwether.experiments.analysis.aggregate import Cell
from bellwether.experiments.report.batch_chart import COLOURS
from bellwether.experiments.report.facts import Facts, Grid, Series
from bellwether.trainer.report.chart import LIGHT, SCALE, TEXT, Chart, Draw, colour_map, count_ticks, evenly, log_ticks
from bellwether.trainer.report.facts import compact, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = 24
_CURVES = 8
_COLUMNS = 2


def heat(facts: Facts) -> Chart | None:
    """The metric over two hyperparameters, a panel for each optimizer and batch size; lighter is better."""
    grids = shown(facts.grids)
    means = [setting.mean for grid in grids for setting in grid.settings.values() if setting.mean is not None]
    if not means:
        return None
    from matplotlib.colors import Normalize

    more = facts.metric.at_least
    # Settings that learned nothing are many and far off: they would leave no colours for the others.
    low, high = sorted((float(np.median(means)), max(means) if more else min(means)))
    look = {
        "cmap": colour_map(SCALE if more else SCALE[::-1]),
        "norm": Normalize(low, max(high, low + 1e-9), clip=True),
    }
    rows = math.ceil(len(grids) / _COLUMNS)
    chart = Chart(height=rows * 165 + 70, shape=(rows, _COLUMNS))
    for place, (ax, grid) in enumerate(zip(chart.axes, grids, strict=False)):
        image = _panel(ax, grid, facts, look)
        if place + _COLUMNS >= len(grids):
            ax.set_xlabel(key_name(grid.x), fontsize=TEXT - 1)
        if place % _COLUMNS == 0:
            ax.set_ylabel(key_name(grid.y), fontsize=TEXT - 1)
    for ax in chart.axes[len(grids) :]:
        ax.axis("off")
    chart.colour_bar(image, fraction=0.03 if rows > 1 else 0.06, pad=0.02, shrink=0.8, extend="min" if more else "max")
    return chart


def shown(grids: Sequence[Grid]) -> list[Grid]:
    """At most `_PANELS` grids, of batch sizes spread over all, ordered by batch size and optimizer."""
    names = {grid.cell.optimizer for grid in grids}
    most = max(1, _PANELS // max(1, len(names)))
    pick = evenly(sorted({grid.cell.batch for grid in grids}), most)
    order = sorted((grid for grid in grids if grid.cell.batch in pick), key=lambda g: (g.cell.batch, g.cell.optimizer))
    return order[:_PANELS]


def _panel(ax: Axes, grid: Grid, facts: Facts, look: dict[str, Any]) -> Any:
    """Draw one grid, with a frame around its best setting; returns the image, for the colour bar."""
    means = [[grid.settings[x, y].mean if (x, y) in grid.settings else None for x in grid.xs] for y in grid.ys]
    values = np.array(means, dtype=np.float64)
    image = ax.pcolormesh(values, edgecolors=LIGHT["card"], linewidth=0.8, **look)
    rows, columns = np.nonzero(np.isnan(values))
    ax.plot(columns + 0.5, rows + 0.5, "x", color=LIGHT["mark"], markersize=4)
    text = "nothing measured"
    if np.isfinite(values).any():
        at = (np.nanargmax if facts.metric.at_least else np.nanargmin)(values)
        row, column = np.unravel_index(at, values.shape)
        # The opposite end of the colour scale stands out from the cell on any page.
        lighter = (look["norm"](values[row, column]) > 0.5) == facts.metric.at_least
        x, y = (column + 0.06, column + 0.94), (row + 0.06, row + 0.94)
        ax.plot(
            [x[0], x[1], x[1], x[0], x[0]],
            [y[0], y[0], y[1], y[1], y[0]],
            color=SCALE[0 if lighter else -1],
            linewidth=2.0,
        )
        text = significant(float(values[row, column]))
    batch = f" · {grid.cell.batch:,}" if len(facts.batches) > 1 else ""
    ax.set_title(f"{grid.cell.optimizer}{batch}\nbest {text}", linespacing=1.25)
    for axis, points, room in ((ax.xaxis, grid.xs, 3), (ax.yaxis, grid.ys, 6)):
        places = range(0, len(points), math.ceil(len(points) / room))
        axis.set_ticks([i + 0.5 for i in places], [value_name(points[i]) for i in places])
    ax.grid(False)
    ax.tick_params(labelsize=TEXT - 0.5, pad=3)
    ax.spines["bottom"].set_visible(False)
    return image


def course(index: int) -> Draw[Facts]:
    """The learning curves of one optimizer: the middle seed of the best setting at each batch size."""
    return partial(_course, index=index)


def _course(facts: Facts, index: int) -> Chart | None:
    curves, colour = _curves(facts, facts.series[index]), COLOURS[index % len(COLOURS)]
    if not curves:
        return None
    chart = Chart("samples")
    ax = chart.ax
    for depth, (cell, points) in zip(np.linspace(1.0, 0.4, len(curves))[::-1], curves, strict=True):
        label = f"{cell.batch:,}"
        ax.plot(*points.T, color=LIGHT[colour], alpha=depth, linewidth=1.5, label=label)
        (end,) = ax.plot(*points[-1], "o", color=LIGHT[colour], alpha=depth, markersize=4)
        end.set_url(facts.link(cell.best.median_run.trial))
        chart.tip(f"batch {label}", colour, [
            (x, y, f"{x:,.0f} samples", f"{significant(y)} at step {x / cell.batch:,.0f}")
            for x, y in points.tolist() if x > 0
        ])  # fmt: skip
    _share_axes(chart, facts)
    if facts.target is not None:
        ax.axhline(facts.target.value, color=LIGHT["muted"], linewidth=0.9, linestyle="--", zorder=1, label="target")
    chart.legend()
    return chart


def _share_axes(chart: Chart, facts: Facts) -> None:
    """The same axes for all optimizers, whose charts are side by side; logarithmic if the curves need it."""
    ax = chart.ax
    every = [points for cell in facts.cells if len(points := _curve(facts, cell)) and points[-1, 0] > 0]
    ends = [points[-1, 0] for points in every] or [1.0]
    if max(ends) > 6 * min(ends):
        ax.set_xscale("log")
        first = 0.8 * min(points[points[:, 0] > 0, 0].min() for points in every)
        ax.set_xlim(max(min(ends) / 50, first), max(ends) * 1.2)
        log_ticks(ax.xaxis, *ax.get_xlim())
    else:
        ax.set_xlim(0, max(ends) * 1.03)
        count_ticks(ax.xaxis)
    values = np.concatenate([points[:, 1] for series in facts.series for _, points in _curves(facts, series)])
    ax.update_datalim([(max(ends), values.min()), (max(ends), values.max())])
    ax.autoscale_view(scalex=False)
    chart.log_y_if_needed(values)


def _curves(facts: Facts, series: Series) -> list[tuple[Cell, NDArray[np.float64]]]:
    """The curves of at most `_CURVES` batch sizes, spread over all."""
    return [(cell, points) for cell in evenly(series.cells, _CURVES) if len(points := _curve(facts, cell))]


def _curve(facts: Facts, cell: Cell) -> NDArray[np.float64]:
    """(samples, value) of the best setting's middle seed [points, 2]: at most 400, only finite values."""
    rows = [(m["samples"], m.get(facts.metric.metric, math.nan)) for m in cell.best.median_run.trial.measurements]
    return np.reshape(evenly([row for row in rows if math.isfinite(row[1])], 400), (-1, 2)).astype(np.float64)


def value_name(value: float) -> str:
    """
    >>> [value_name(v) for v in (0.001, 1e-05, 0.00031622, 4096.0)]
    ['0.001', '1e-5', '3.2e-4', '4.1k']
    """
    if 0 < abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
    return compact(float(f"{value:.2g}"))


def key_name(key: str) -> str:
    """A config key as a label: its last part."""
    name = key.rpartition(".")[2]
    return "decay" if name == "weight_decay" else name
