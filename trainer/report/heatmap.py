"""Heat maps of a run: trust ratios and norms of every layer, layers down, samples along, logarithmic colour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bellwether.trainer.metrics import Line
from bellwether.trainer.report.chart import LIGHT, TEXT, Chart, log_ticks
from bellwether.trainer.report.curves import SCALE, Draw, over_samples
from bellwether.trainer.report.facts import Facts
from bellwether.trainer.report.names import Name, runs, shorten

Array = NDArray[np.float64]

_COLUMNS = 240
_EACH_ROW = 26  # up to this many rows each has a label; beyond, each group has one
_LABEL = 30  # characters


def by_layer(event: str, key: str) -> Draw:
    """A heat map of one value of every layer; `event`: the lines of the history that hold it."""

    def draw(facts: Facts) -> Chart | None:
        return _heat_map(facts, *table(getattr(facts.history, event), key))

    return draw


def _heat_map(facts: Facts, names: list[Name], x: Array, values: Array) -> Chart | None:
    known = values[np.isfinite(values) & (values > 0)]
    if not len(known):
        return None
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    rows = len(names)
    groups = runs(name.group for name in names)
    pitch = 14.5 if rows <= _EACH_ROW else max(3.0, min(9.0, 420.0 / rows), 12.0 * min(len(groups), 36) / rows)
    height = min(640.0, rows * pitch)
    chart = over_samples(facts, height=height + 84)
    ax = chart.ax
    ax.grid(False)
    low, high = np.percentile(known, [1, 99])
    if high < low * 1.2:
        low, high = low / 1.2, high * 1.2
    image = ax.imshow(
        np.where(values > 0, values, np.nan), aspect="auto", interpolation="none",
        extent=(float(x[0]), float(x[-1]), rows, 0), norm=LogNorm(low, high, clip=True),
        cmap=LinearSegmentedColormap.from_list("values", SCALE),
    )  # fmt: skip
    ax.set_xlim(0, facts.reach)
    for _, begin, _ in groups[1:]:
        ax.axhline(begin, color=LIGHT["card"], linewidth=1.0 if rows <= 150 else 0.5)
    for samples, _ in facts.boundaries:
        ax.axvline(samples, color=LIGHT["card"], linewidth=1.2)
    ax.set_yticks(*_labels(names, groups, height))
    ax.tick_params(axis="y", labelsize=TEXT - 1.5)
    ax.spines["bottom"].set_visible(False)
    bar = chart.figure.colorbar(
        image, ax=ax, location="top", aspect=40, fraction=0.03, pad=0.012, shrink=0.85, anchor=(0.0, 0.5), extend="both"
    )
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(True)  # type: ignore[union-attr]
    bar.ax.tick_params(length=0, labelsize=TEXT - 1, pad=3)
    log_ticks(bar.ax.xaxis, low, high)
    return chart


def table(events: list[Line], key: str) -> tuple[list[Name], Array, Array]:
    """(names in model order, edges of the columns in samples, values of shape (layers, columns))."""
    lines = [line for line in events if isinstance(line.get(key), dict)]
    order = list(dict.fromkeys(name for line in lines for name in line[key]))
    if not order:
        return [], np.zeros(0), np.zeros((0, 0))
    samples = np.array([float(line["samples"]) for line in lines])
    values = np.array([[_float(line[key].get(name)) for line in lines] for name in order], dtype=np.float64)
    # A line covers the steps since the line before it. The first covers as many as the second.
    step = samples[1] - samples[0] if len(samples) > 1 else max(samples[0], 1.0)
    begin = max(0.0, samples[0] - step)
    columns = min(_COLUMNS, max(1, round((samples[-1] - begin) / max(1.0, float(np.diff(samples).min(initial=step))))))
    edges = np.linspace(begin, samples[-1], columns + 1)
    cells = np.full((len(order), columns), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(values > 0, np.log(values), np.nan)
    for column in range(columns):
        inside = (samples > edges[column]) & (samples <= edges[column + 1] * (1 + 1e-12))
        if not inside.any():
            # Lines are further apart than columns: the next line covers this column too.
            inside = np.arange(len(samples)) == np.searchsorted(samples, edges[column + 1]).clip(0, len(samples) - 1)
        part = logs[:, inside]
        some = np.isfinite(part)
        total = np.where(some, part, 0).sum(axis=1)
        cells[:, column] = np.where(some.any(axis=1), np.exp(total / np.maximum(some.sum(axis=1), 1)), np.nan)
    return shorten(order), edges, cells


def _labels(names: list[Name], groups: list[tuple[str, int, int]], height: float) -> tuple[list[float], list[str]]:
    """Positions and labels of the rows: of each row, or of the groups that have room for a line of text."""
    if len(names) <= _EACH_ROW:
        texts = [n.short if n.short == n.group else f"{n.group} · {n.short}" for n in names]
        return [row + 0.5 for row in range(len(names))], [_cut(text) for text in texts]
    room = (TEXT + 2.0) * len(names) / height
    shown: list[tuple[float, str]] = []
    for group, begin, end in groups:
        middle = (begin + end) / 2
        if not shown or middle - shown[-1][0] >= room:
            shown.append((middle, _cut(group)))
    return [middle for middle, _ in shown], [text for _, text in shown]


def _cut(text: str) -> str:
    return text if len(text) <= _LABEL else f"…{text[1 - _LABEL :]}"


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else np.nan
