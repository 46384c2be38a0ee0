"""Heat maps of two hyperparameters, and the learning curves of the best settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bellwether.experiments.analysis.aggregate import Cell
from bellwether.experiments.report.batch_chart import colour_of, link
from bellwether.experiments.report.facts import Facts, Grid, Series
from bellwether.trainer.report.chart import DASHED, LIGHT, TEXT, Chart, count_ticks, log_ticks
from bellwether.trainer.report.curves import SCALE, significant
from bellwether.trainer.report.facts import compact

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
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    # Settings that learned nothing are many and far off: they would leave no colours for the others.
    ends = sorted((float(np.median(means)), max(means) if facts.metric.at_least else min(means)))
    norm = Normalize(ends[0], ends[1] if ends[1] > ends[0] else ends[0] + 1e-9, clip=True)
    colours = SCALE if facts.metric.at_least else SCALE[::-1]
    look = {"cmap": LinearSegmentedColormap.from_list("sweep", colours), "norm": norm}
    rows = math.ceil(len(grids) / _COLUMNS)
    chart = Chart(height=rows * 165 + 70, subplots=False)
    axes = chart.figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for place, ax in enumerate(axes):
        if place >= len(grids):
            ax.axis("off")
            continue
        grid = grids[place]
        image = _panel(ax, grid, facts, look)
        if place + _COLUMNS >= len(grids):
            ax.set_xlabel(key_name(grid.x), fontsize=TEXT - 1, loc="right", labelpad=1)
        if place % _COLUMNS == 0:
            ax.set_ylabel(key_name(grid.y), fontsize=TEXT - 1, loc="top", labelpad=2)
    bar = chart.figure.colorbar(
        image, ax=axes.tolist(), location="top", aspect=40, fraction=0.03 if rows > 1 else 0.06, pad=0.02, shrink=0.8,
        anchor=(0.0, 0.5), extend="min" if facts.metric.at_least else "max",
    )  # fmt: skip
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(True)  # type: ignore[union-attr]
    bar.ax.tick_params(length=0, labelsize=TEXT - 1, pad=3)
    return chart


def shown(grids: Sequence[Grid]) -> list[Grid]:
    """At most `_PANELS` grids, of batch sizes spread over all, ordered by batch size and optimizer."""
    batches = sorted({grid.cell.batch for grid in grids})
    names = {grid.cell.optimizer for grid in grids}
    most = min(max(1, _PANELS // max(1, len(names))), len(batches))
    pick = {batches[round(i)] for i in np.linspace(0, len(batches) - 1, most)} if batches else set()
    order = sorted((grid for grid in grids if grid.cell.batch in pick), key=lambda g: (g.cell.batch, g.cell.optimizer))
    return order[:_PANELS]


def _panel(ax: Axes, grid: Grid, facts: Facts, look: dict[str, Any]) -> Any:
    """Draw one grid, with a frame around its best setting; returns the image, for the colour bar."""
    values = np.full((len(grid.ys), len(grid.xs)), np.nan)
    for (x, y), setting in grid.settings.items():
        if setting.mean is not None:
            values[grid.ys.index(y), grid.xs.index(x)] = setting.mean
    image = ax.pcolormesh(values, edgecolors=LIGHT["card"], linewidth=0.8, **look)
    ax.patch.set_alpha(0)
    for row, column in np.argwhere(np.isnan(values)):
        ax.plot([column + 0.5], [row + 0.5], "x", color=LIGHT["mark"], markersize=4)
    text = "nothing measured"
    if np.isfinite(values).any():
        at = (np.nanargmax if facts.metric.at_least else np.nanargmin)(values)
        row, column = np.unravel_index(at, values.shape)
        around = (0.06, 0.94, 0.94, 0.06, 0.06), (0.06, 0.06, 0.94, 0.94, 0.06)
        # The opposite end of the colour scale stands out from the cell on any page.
        lighter = (look["norm"](values[row, column]) > 0.5) == facts.metric.at_least
        ax.plot(*np.add(around, [[column], [row]]), color=SCALE[0 if lighter else -1], linewidth=2.0, zorder=5)
        text = significant(float(values[row, column]))
    batch = f" · {grid.cell.batch:,}" if len(facts.batches) > 1 else ""
    title = f"{grid.cell.optimizer}{batch}\nbest {text}"
    ax.set_title(title, fontsize=TEXT, loc="left", color=LIGHT["muted"], pad=5, linespacing=1.25)
    for axis, points, room in ((ax.xaxis, grid.xs, 3), (ax.yaxis, grid.ys, 6)):
        places = range(0, len(points), math.ceil(len(points) / room))
        axis.set_ticks([i + 0.5 for i in places], [value_name(points[i]) for i in places])
    ax.tick_params(length=0, labelsize=TEXT - 0.5, pad=3)
    ax.spines[:].set_visible(False)
    return image


def course(index: int) -> Callable[[Facts], Chart | None]:
    """The learning curves of one optimizer: the middle seed of the best setting at each batch size."""

    def draw(facts: Facts) -> Chart | None:
        return _course(facts, facts.series[index], colour_of(index))

    return draw


def _course(facts: Facts, series: Series, colour: str) -> Chart | None:
    name = facts.metric.metric
    curves = _curves(series, name)
    if not curves:
        return None
    chart = Chart("samples")
    ax = chart.ax
    for place, (cell, points) in enumerate(curves):
        depth = 1.0 if len(curves) == 1 else 0.4 + 0.6 * place / (len(curves) - 1)
        label = f"{cell.batch:,}"
        ax.plot(points[:, 0], points[:, 1], color=LIGHT[colour], alpha=depth, linewidth=1.5, label=label)
        (end,) = ax.plot(*points[-1], "o", color=LIGHT[colour], alpha=depth, markersize=4)
        link(facts, end, cell.best.median_run)
        chart.tip(f"batch {label}", colour, [
            (x, y, f"{x:,.0f} samples", f"{significant(y)} at step {x / cell.batch:,.0f}")
            for x, y in points.tolist() if x > 0
        ])  # fmt: skip
    _shared_axes(chart, facts, curves)
    if facts.target is not None:
        ax.axhline(facts.target.value, color=LIGHT["muted"], linewidth=0.9, linestyle=DASHED, zorder=1, label="target")
    chart.legend()
    return chart


def _shared_axes(chart: Chart, facts: Facts, curves: Sequence[tuple[Cell, NDArray[np.float64]]]) -> None:
    """The same axes for all optimizers, whose charts are side by side; logarithmic if the curves need it."""
    ax, name = chart.ax, facts.metric.metric
    every = [points for cell in facts.cells if len(points := _curve(cell, name)) and points[-1, 0] > 0]
    ends = [points[-1, 0] for points in every]
    if ends and max(ends) > 6 * min(ends):
        ax.set_xscale("log")
        first = 0.8 * min(points[points[:, 0] > 0, 0].min() for points in every)
        ax.set_xlim(max(min(ends) / 50, first), max(ends) * 1.2)
        log_ticks(ax.xaxis, *ax.get_xlim())
    else:
        ax.set_xlim(0, max(ends, default=1) * 1.03)
        count_ticks(ax.xaxis)
    values = np.concatenate([points[:, 1] for each in facts.series for _, points in _curves(each, name)])
    ax.update_datalim(np.column_stack([np.full(len(values), curves[0][1][0, 0]), values]))
    ax.autoscale_view(scalex=False)
    if values.min() > 0 and values.max() > 30 * np.median(values):
        chart.log_y()


def _curves(series: Series, name: str) -> list[tuple[Cell, NDArray[np.float64]]]:
    """The curves of at most `_CURVES` batch sizes, spread over all."""
    pick = sorted({round(i) for i in np.linspace(0, len(series.cells) - 1, min(_CURVES, len(series.cells)))})
    return [(cell, points) for cell in (series.cells[i] for i in pick) if len(points := _curve(cell, name))]


def _curve(cell: Cell, name: str) -> NDArray[np.float64]:
    """(samples, value) of the best setting's middle seed [points, 2]: at most 400, only finite values."""
    rows = [(m["samples"], m[name]) for m in cell.best.median_run.trial.measurements if name in m]
    points = np.array([row for row in rows if math.isfinite(row[1])], dtype=np.float64).reshape(-1, 2)
    return points[np.linspace(0, len(points) - 1, min(400, len(points))).astype(int)]


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
    return {"weight_decay": "decay"}.get(key.rpartition(".")[2], key.rpartition(".")[2])
