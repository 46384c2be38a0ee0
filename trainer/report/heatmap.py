"""Heat maps of a run: trust ratios and norms of every layer, layers down, samples along, logarithmic colour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bellwether.trainer.metrics import Line
from bellwether.trainer.report.chart import LIGHT, SCALE, TEXT, Chart, colour_map, log_ticks
from bellwether.trainer.report.curves import over_samples
from bellwether.trainer.report.facts import Facts
from bellwether.trainer.report.names import Name, runs, shorten

Array = NDArray[np.float64]

_COLUMNS = 240
_EACH_ROW = 26  # up to this many rows each has a label; beyond, each group has one
_LABEL = 30  # characters


def by_layer(facts: Facts, event: str, key: str) -> Chart | None:
    """A heat map of one value of every layer; `event`: the lines of the history that hold it."""
    names, x, values = table(getattr(facts.history, event), key)
    known = values[np.isfinite(values) & (values > 0)]
    if not len(known):
        return None
    from matplotlib.colors import LogNorm

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
        np.where(values > 0, values, np.nan), cmap=colour_map(SCALE), norm=LogNorm(low, high, clip=True), aspect="auto",
        extent=(x[0], x[-1], rows, 0),
    )  # fmt: skip
    ax.set_xlim(0, facts.reach)
    for _, begin, _ in groups[1:]:
        ax.axhline(begin, color=LIGHT["card"], linewidth=1.0 if rows <= 150 else 0.5)
    for samples, _ in facts.boundaries:
        ax.axvline(samples, color=LIGHT["card"], linewidth=1.2)
    labels = _labels(names, groups, height)
    ax.set_yticks(
        [row for row, _ in labels], [text if len(text) <= _LABEL else f"…{text[1 - _LABEL :]}" for _, text in labels]
    )
    ax.tick_params(axis="y", labelsize=TEXT - 1.5)
    ax.spines["bottom"].set_visible(False)
    log_ticks(chart.colour_bar(image, fraction=0.03, pad=0.012, shrink=0.85, extend="both"), low, high)
    return chart


def table(events: list[Line], key: str) -> tuple[list[Name], Array, Array]:
    """(names in model order, edges of the columns in samples, values of shape (layers, columns))."""
    lines = [line for line in events if key in line]
    order = list(dict.fromkeys(name for line in lines for name in line[key]))
    if not order:
        return [], np.zeros(0), np.zeros((0, 0))
    samples = np.array([float(line["samples"]) for line in lines])
    values = np.array([[line[key].get(name) for line in lines] for name in order], dtype=np.float64)
    # A line covers the steps since the line before it. The first covers as many as the second.
    steps = np.diff(samples, prepend=max(0.0, 2 * samples[0] - samples[1]) if len(samples) > 1 else 0.0)
    begin = samples[0] - steps[0]
    edges = np.linspace(
        begin, samples[-1], min(_COLUMNS, max(1, round((samples[-1] - begin) / max(1.0, steps.min())))) + 1
    )
    # The lines of each column: those inside, or the next one if lines are further apart than columns.
    first = np.searchsorted(samples, edges[:-1], side="right")
    last = np.searchsorted(samples, edges[1:] * (1 + 1e-12), side="right")
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.ma.masked_invalid(np.log(values))
    cells = [logs[:, a : max(a + 1, b)].mean(axis=1) for a, b in zip(first, last, strict=True)]
    return shorten(order), edges, np.ma.exp(np.ma.stack(cells, axis=1)).filled(np.nan)


def _labels(names: list[Name], groups: list[tuple[str, int, int]], height: float) -> list[tuple[float, str]]:
    """Positions and labels of the rows: of each row, or of the groups that have room for a line of text."""
    if len(names) <= _EACH_ROW:
        return [(row + 0.5, n.group if n.short == n.group else f"{n.group} · {n.short}") for row, n in enumerate(names)]
    room = (TEXT + 2.0) * len(names) / height
    shown: list[tuple[float, str]] = []
    for group, begin, end in groups:
        middle = (begin + end) / 2
        if not shown or middle - shown[-1][0] >= room:
            shown.append((middle, group))
    return shown
