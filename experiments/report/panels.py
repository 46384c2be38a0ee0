"""Heat maps of two hyperparameters, and the learning curves of the best settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bellwether.experiments.analysis.aggregate import Cell
from bellwether.experiments.report.batch_axes import address, colour_of
from bellwether.experiments.report.facts import Facts, Grid, Series
from bellwether.trainer.report.canvas import LIGHT, Size, counted, legend, log_ticks, plain, sheet
from bellwether.trainer.report.facts import compact
from bellwether.trainer.report.heatmap import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

_PANELS = 24
_CURVES = 8


def heat(facts: Facts, size: Size) -> Figure | None:
    """The metric over two hyperparameters: a row of panels a batch, a column an optimizer; lighter is better."""
    grids = shown(facts.grids)
    if not grids:
        return None
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    names = list(dict.fromkeys(grid.cell.optimizer for grid in grids))
    batches = sorted({grid.cell.batch for grid in grids})
    columns = len(names) if len(names) > 1 else min(len(batches), 2 if size.narrow else 4)
    columns = min(columns, 2) if size.narrow else max(columns, 2)
    several = 1 < len(names) <= columns
    places = {
        id(grid): (divmod(batches.index(grid.cell.batch) * columns + names.index(grid.cell.optimizer), columns))
        if several else divmod(index, columns)
        for index, grid in enumerate(grids)
    }  # fmt: skip
    rows = max(row for row, _ in places.values()) + 1
    panel = 170 if size.narrow else 200
    figure = sheet(replace(size, height=rows * panel + 70 + 30 * size.titled), f"Best {facts.measure}")
    means = [s.mean for grid in grids for s in grid.settings.values() if s.mean is not None]
    if not means:
        return None
    # Settings that learned nothing are many and far off: they would leave no colours for those that did.
    ends = sorted((float(np.median(means)), max(means) if facts.metric.at_least else min(means)))
    colours = COLOURS if facts.metric.at_least else COLOURS[::-1]
    scale = LinearSegmentedColormap.from_list("sweep", colours)
    norm = Normalize(ends[0], ends[1] if ends[1] > ends[0] else ends[0] + 1e-9, clip=True)
    figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.1)
    axes = figure.subplots(rows, columns, squeeze=False)
    same = len({tuple(grid.ys) for grid in grids}) == 1
    taken = set(places.values())
    for grid in grids:
        row, column = places[id(grid)]
        below = (row + 1, column) in taken
        image = _panel(
            axes[row][column],
            grid,
            facts,
            size,
            scale,
            norm,
            bottom=not below,
            left=column == 0,
            marked=column == 0 or not same,
        )
    for row in range(rows):
        for column in range(columns):
            if (row, column) not in taken:
                axes[row][column].axis("off")
    bar = figure.colorbar(
        image, ax=axes.ravel().tolist(), location="top", aspect=40, fraction=0.03 if rows > 1 else 0.06, pad=0.02,
        shrink=0.8 if size.narrow else 0.4, anchor=(0.0, 0.5), extend="min" if facts.metric.at_least else "max",
    )  # fmt: skip
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(True)  # type: ignore[union-attr]
    bar.ax.tick_params(length=0, labelsize=size.text - 1, pad=3)
    return figure


def shown(grids: Sequence[Grid]) -> list[Grid]:
    """As many as a reader looks at, from batches spread over all."""
    batches = sorted({grid.cell.batch for grid in grids})
    names = {grid.cell.optimizer for grid in grids}
    most = max(1, _PANELS // max(1, len(names)))
    pick = {batches[round(i)] for i in np.linspace(0, len(batches) - 1, min(most, len(batches)))} if batches else set()
    order = sorted((grid for grid in grids if grid.cell.batch in pick), key=lambda g: (g.cell.batch, g.cell.optimizer))
    return order[:_PANELS]


def _panel(
    ax: Axes,
    grid: Grid,
    facts: Facts,
    size: Size,
    scale: Colormap,
    norm: Normalize,
    bottom: bool,
    left: bool,
    marked: bool,
) -> QuadMesh:
    values = np.full((len(grid.ys), len(grid.xs)), np.nan)
    for (x, y), setting in grid.settings.items():
        if setting.mean is not None:
            values[grid.ys.index(y), grid.xs.index(x)] = setting.mean
    image = ax.pcolormesh(values, cmap=scale, norm=norm, edgecolors=LIGHT["card"], linewidth=0.8)
    ax.patch.set_alpha(0)
    for row, column in np.argwhere(np.isnan(values)):
        ax.plot([column + 0.5], [row + 0.5], "x", color=LIGHT["mark"], markersize=4)
    text = "nothing measured"
    if np.isfinite(values).any():
        at = (np.nanargmax if facts.metric.at_least else np.nanargmin)(values)
        row, column = np.unravel_index(at, values.shape)
        around = (0.06, 0.94, 0.94, 0.06, 0.06), (0.06, 0.06, 0.94, 0.94, 0.06)
        # In a colour of the map, which stands out from the cell on any page.
        lighter = (norm(values[row, column]) > 0.5) == facts.metric.at_least
        ax.plot(*np.add(around, [[column], [row]]), color=COLOURS[0 if lighter else -1], linewidth=2.0, zorder=5)
        text = f"{values[row, column]:.4g}"
    gap = "\n" if size.narrow else " · "
    batch = f" · {grid.cell.batch:,}" if len(facts.batches) > 1 else ""
    ax.set_title(
        f"{grid.cell.optimizer}{batch}{gap}best {text}", fontsize=size.text, loc="left",
        color=LIGHT["muted"], pad=5, linespacing=1.25,
    )  # fmt: skip
    for axis, points, room in ((ax.xaxis, grid.xs, 3 if size.narrow else 6), (ax.yaxis, grid.ys, 6)):
        every = math.ceil(len(points) / room)
        places = range(0, len(points), every)
        axis.set_ticks([i + 0.5 for i in places], [value_name(points[i]) for i in places])
    ax.tick_params(length=0, labelsize=size.text if size.narrow else size.text - 1, pad=3, labelleft=marked)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if bottom:
        ax.set_xlabel(key_name(grid.x), fontsize=size.text - 1, loc="right", labelpad=1)
    if left:
        ax.set_ylabel(key_name(grid.y), fontsize=size.text - 1, loc="top", labelpad=2)
    return image


def course(index: int) -> Callable[[Facts, Size], Figure | None]:
    """The learning curves of one optimizer: the best setting's middle seed at each batch."""

    def draw(facts: Facts, size: Size) -> Figure | None:
        return _course(facts, facts.series[index], colour_of(index), size)

    return draw


def _course(facts: Facts, series: Series, colour: str, size: Size) -> Figure | None:
    name = facts.metric.metric
    curves = _curves(series, name)
    if not curves:
        return None
    figure = sheet(size, f"{facts.measure}, {series.name}")
    ax = figure.add_subplot()
    plain(ax, size, "samples")
    for place, (cell, points) in enumerate(curves):
        depth = 1.0 if len(curves) == 1 else 0.4 + 0.6 * place / (len(curves) - 1)
        ax.plot(points[:, 0], points[:, 1], color=colour, alpha=depth, linewidth=1.5, label=f"{cell.batch:,}")
        (end,) = ax.plot(*points[-1], "o", color=colour, alpha=depth, markersize=4)
        address(facts, end, cell.best.median_run)
    # One x axis for all optimizers, logarithmic where large batches go much further than small ones.
    shown = [points for cell in facts.cells if len(points := _curve(cell, name)) and points[-1, 0] > 0]
    ends = [points[-1, 0] for points in shown]
    if ends and max(ends) > 6 * min(ends):
        ax.set_xscale("log")
        ax.set_xlim(
            max(min(ends) / 50, 0.8 * min(points[points[:, 0] > 0, 0].min() for points in shown)), max(ends) * 1.2
        )
        log_ticks(ax.xaxis, *ax.get_xlim())
    else:
        ax.set_xlim(0, max(ends, default=1) * 1.03)
        counted(ax.xaxis, size)
    # One y axis too: they stand side by side.
    values = np.concatenate([points[:, 1] for each in facts.series for _, points in _curves(each, name)])
    ax.update_datalim(np.column_stack([np.full(len(values), curves[0][1][0, 0]), values]))
    ax.autoscale_view(scalex=False)
    if values.min() > 0 and values.max() > 30 * np.median(values):
        ax.set_yscale("log")
        log_ticks(ax.yaxis, *ax.get_ylim())
    if facts.target is not None:
        ax.axhline(
            facts.target.value, color=LIGHT["muted"], linewidth=0.9, linestyle=(0, (5, 4)), zorder=1, label="target"
        )
    legend(ax, size)
    return figure


def _curves(series: Series, name: str) -> list[tuple[Cell, NDArray[np.float64]]]:
    """Of as many batches as a reader tells apart, spread over all."""
    pick = sorted({round(i) for i in np.linspace(0, len(series.cells) - 1, min(_CURVES, len(series.cells)))})
    return [(cell, points) for cell in (series.cells[i] for i in pick) if len(points := _curve(cell, name))]


def _curve(cell: Cell, name: str) -> NDArray[np.float64]:
    """(samples, value) of the best setting's middle seed [points, 2]; at most 400, without what is not finite."""
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
    """A config's key as a label: its last part."""
    return {"weight_decay": "decay"}.get(key.rpartition(".")[2], key.rpartition(".")[2])
