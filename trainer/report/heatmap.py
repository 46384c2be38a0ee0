"""Trust ratios and norms of every layer over the run: layers down, samples along, a logarithmic colour."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bellwether.trainer.metrics import Line
from bellwether.trainer.report.canvas import LIGHT, Size, axes, log_ticks
from bellwether.trainer.report.facts import Facts
from bellwether.trainer.report.names import Name, runs, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

# Light grows with the ratio, evenly; readable on a white and on a dark page, and in grey.
COLOURS = ("#1c2444", "#27497a", "#31778f", "#5ba48b", "#a9c77f", "#f1e6a4")
_COLUMNS = 240
_EACH_ROW = 26  # up to so many rows each has its own label; beyond, the groups have


def layers(facts: Facts, size: Size) -> Figure | None:
    return _map(facts.history.layers, "trust_ratio", "Trust ratio by layer", facts, size)


def update_norms(facts: Facts, size: Size) -> Figure | None:
    return _map(facts.history.norms, "update_norms", "Norm of the update by layer", facts, size)


def weight_norms(facts: Facts, size: Size) -> Figure | None:
    return _map(facts.history.norms, "weight_norms", "Norm of the weights by layer", facts, size)


def _map(events: list[Line], key: str, title: str, facts: Facts, size: Size) -> Figure | None:
    """The heat map, as high as the number of layers asks for."""
    names, x, ratios = table(events, key)
    known = ratios[np.isfinite(ratios) & (ratios > 0)]
    if not len(known):
        return None
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    rows = len(names)
    groups = runs(name.group for name in names)
    pitch = 17.0 if rows <= _EACH_ROW else max(3.0, min(9.0, 520.0 / rows), 12.0 * min(len(groups), 40) / rows)
    size = replace(size, height=min(760.0, rows * pitch) + 84 + (30 if size.titled else 0))
    figure, ax = axes(facts, size, title)
    ax.grid(False)
    low, high = np.percentile(known, [1, 99])
    if high < low * 1.2:
        low, high = low / 1.2, high * 1.2
    image = ax.imshow(
        np.where(ratios > 0, ratios, np.nan), aspect="auto", interpolation="none",
        extent=(float(x[0]), float(x[-1]), rows, 0), norm=LogNorm(low, high, clip=True),
        cmap=LinearSegmentedColormap.from_list("trust", COLOURS),
    )  # fmt: skip
    ax.set_xlim(0, facts.reach)
    for _, begin, _ in groups[1:]:
        ax.axhline(begin, color=LIGHT["card"], linewidth=1.0 if rows <= 150 else 0.5)
    for samples, _ in facts.boundaries:
        ax.axvline(samples, color=LIGHT["card"], linewidth=1.2)
    ticks, labels = _labels(names, groups, size, size.height - 84)
    ax.set_yticks(ticks, labels)
    # On a phone style.css sets all letters to 12.2: what is measured smaller would stick out at the left.
    ax.tick_params(axis="y", labelsize=12.2 if size.narrow else size.text - 0.5)
    ax.spines["bottom"].set_visible(False)
    bar = figure.colorbar(
        image, ax=ax, location="top", aspect=40 if size.narrow else 60, fraction=0.03, pad=0.012,
        shrink=0.85 if size.narrow else 0.45, anchor=(0.0, 0.5), extend="both",
    )  # fmt: skip
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(True)  # type: ignore[union-attr]
    bar.ax.tick_params(length=0, labelsize=size.text - 1, pad=3)
    log_ticks(bar.ax.xaxis, low, high)
    return figure


def table(events: list[Line], key: str) -> tuple[list[Name], Array, Array]:
    """(names in model order, edges of the columns in samples, values of shape (layers, columns))."""
    lines = [line for line in events if isinstance(line.get(key), dict)]
    order = list(dict.fromkeys(name for line in lines for name in line[key]))
    if not order:
        return [], np.zeros(0), np.zeros((0, 0))
    samples = np.array([float(line["samples"]) for line in lines])
    values = np.array([[_float(line[key].get(name)) for line in lines] for name in order], dtype=np.float64)
    # A line tells of the steps since the line before. The first reaches back as far as the second does.
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
            # Lines lie further apart than columns: the next line tells of this stretch too.
            inside = np.arange(len(samples)) == np.searchsorted(samples, edges[column + 1]).clip(0, len(samples) - 1)
        part = logs[:, inside]
        some = np.isfinite(part)
        total = np.where(some, part, 0).sum(axis=1)
        cells[:, column] = np.where(some.any(axis=1), np.exp(total / np.maximum(some.sum(axis=1), 1)), np.nan)
    return shorten(order), edges, cells


def _labels(
    names: list[Name], groups: list[tuple[str, int, int]], size: Size, height: float
) -> tuple[list[float], list[str]]:
    most = 20 if size.narrow else 40
    if len(names) <= _EACH_ROW:
        texts = [n.short if n.short == n.group else f"{n.group} · {n.short}" for n in names]
        return [row + 0.5 for row in range(len(names))], [_cut(text, most) for text in texts]
    # Labels need room: of groups that lie closer than a line of text the later one goes without.
    room = (size.text + 2.0) * len(names) / height
    ticks: list[float] = []
    labels: list[str] = []
    for group, begin, end in groups:
        middle = (begin + end) / 2
        if not ticks or middle - ticks[-1] >= room:
            ticks.append(middle)
            labels.append(_cut(group, most))
    return ticks, labels


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else np.nan
