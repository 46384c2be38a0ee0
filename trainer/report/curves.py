"""The curves of the report: functions from facts to a figure, or None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bellwether.trainer.metrics import KINDS, Line
from bellwether.trainer.report.canvas import LIGHT, Size, axes, legend, log_ticks, marks
from bellwether.trainer.report.facts import Facts, compact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

_SMOOTH_FROM = 30  # fewer points are shown as they are
_POINTS = 1400  # more than a screen has columns, few enough for a light file


def loss(facts: Facts, size: Size) -> Figure | None:
    """Training loss, raw and smoothed, the held-out points, and what guessing would give."""
    x, y = column(facts.history.train, "loss")
    held = column(facts.history.eval, "loss")
    if not np.isfinite(y).any() and not np.isfinite(held[1]).any():
        return None
    figure, ax = axes(facts, size, "Loss")
    noisy(ax, facts, x, y, "blue", "training")
    if np.isfinite(held[1]).any():
        _points(ax, *held, "orange", "held-out")
    _kinds(ax, facts, "loss", ("plum", "green"))
    if facts.expectation is not None:
        entries, level = facts.expectation
        ax.axhline(level, color=LIGHT["muted"], linewidth=0.9, linestyle=(0, (5, 4)), zorder=1)
        ax.annotate(
            f"guessing: ln {entries:,} = {level:.2f}", (1, level), (-2, 4),
            xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", fontsize=size.text -
            1, color=LIGHT["muted"], bbox={"facecolor": LIGHT["card"], "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip
    lost = x[~np.isfinite(y)]
    if len(lost):
        ax.plot(
            lost, np.full(len(lost), 0.015), "x", color=LIGHT["bad"], transform=ax.get_xaxis_transform(),
            markersize=5, label="not finite", clip_on=False,
        )  # fmt: skip
    return finish(figure, ax, facts, size, np.concatenate([y, held[1]]))


def accuracy(facts: Facts, size: Size) -> Figure | None:
    x, y = column(facts.history.eval, "accuracy")
    if not np.isfinite(y).any():
        return None
    figure, ax = axes(facts, size, "Held-out accuracy")
    _points(ax, x, y, "orange", "held-out")
    _kinds(ax, facts, "accuracy", ("blue", "green"))
    ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    return finish(figure, ax, facts, size)


def learning_rate(facts: Facts, size: Size) -> Figure | None:
    x, y = column(facts.history.train, "lr")
    if not np.isfinite(y).any():
        return None
    figure, ax = axes(facts, size, "Learning rate")
    ax.plot(*_thin(x, y), color=LIGHT["green"], linewidth=1.7)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}".replace("e-0", "e-"))
    return finish(figure, ax, facts, size)


def gradient_norm(facts: Facts, size: Size) -> Figure | None:
    x, y = column(facts.history.train, "grad_norm")
    if not np.isfinite(y).any():
        return None
    figure, ax = axes(facts, size, "Gradient norm")
    noisy(ax, facts, x, y, "plum")
    return finish(figure, ax, facts, size, y)


def noise_scale(facts: Facts, size: Size) -> Figure | None:
    """The critical batch that gradient noise predicts, with its standard error, and the batch that was taken."""
    x, y = column(facts.history.train, "noise_scale")
    _, error = column(facts.history.train, "noise_scale_error")
    if not (np.isfinite(y) & (y > 0)).any():
        return None
    figure, ax = axes(facts, size, "Gradient noise scale, samples")
    ax.set_yscale("log")
    low, high = np.maximum(y - error, y / 10), y + error
    ax.fill_between(x, low, high, color=LIGHT["plum"], alpha=0.18, linewidth=0, label="± its standard error")
    ax.plot(*_thin(x, y), color=LIGHT["plum"], linewidth=1.7, label="noise scale")
    for batch in dict.fromkeys(b for b in facts.over_phases("batch", "global") if isinstance(b, int)):
        ax.axhline(batch, color=LIGHT["muted"], linewidth=0.9, linestyle=(0, (5, 4)), zorder=1)
        ax.annotate(
            f"batch {batch:,}", (1, batch), (-2, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", fontsize=size.text - 1, color=LIGHT["muted"],
            bbox={"facecolor": LIGHT["card"], "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip
    log_ticks(ax.yaxis, *ax.get_ylim())
    return finish(figure, ax, facts, size)


def throughput(facts: Facts, size: Size) -> Figure | None:
    x, y = column(facts.history.train, "samples_per_s")
    if not np.isfinite(y).any():
        return None
    figure, ax = axes(facts, size, "Throughput, samples/s")
    noisy(ax, facts, x, y, "blue")
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(lambda value, _: compact(value))
    return finish(figure, ax, facts, size)


def trust_ratio(facts: Facts, size: Size) -> Figure | None:
    """The smallest, the middle and the largest trust ratio of all layers."""
    lines = [line for line in facts.history.train if isinstance(line.get("trust_ratio"), dict)]
    flat = [{"samples": line["samples"], **line["trust_ratio"]} for line in lines]
    (x, low), (_, middle), (_, high) = (column(flat, key) for key in ("min", "median", "max"))
    if not (np.isfinite(middle) & (middle > 0)).any():
        return None
    figure, ax = axes(facts, size, "Trust ratio")
    ax.set_yscale("log")
    low, middle, high = (np.where(values > 0, values, np.nan) for values in (low, middle, high))
    pick = np.unique(np.linspace(0, len(x) - 1, min(len(x), _POINTS // 2)).astype(int))
    ax.fill_between(
        x[pick],
        low[pick],
        high[pick],
        color=LIGHT["green"],
        alpha=0.18,
        linewidth=0,
        label="smallest to largest",
    )
    ax.plot(x[pick], middle[pick], color=LIGHT["green"], linewidth=1.7, label="median layer")
    log_ticks(ax.yaxis, *ax.get_ylim())
    return finish(figure, ax, facts, size)


def noisy(ax: Axes, facts: Facts, x: Array, y: Array, colour: str, label: str | None = None) -> None:
    """A curve with noise: raw and faint, and its course on top."""
    if len(x) < _SMOOTH_FROM:
        ax.plot(x, y, color=LIGHT[colour], linewidth=1.7, marker="o", markersize=3, label=label)
        return
    smooth = smoothed(y, _phases(facts, x))
    ax.plot(*_thin(x, y), color=LIGHT[colour], linewidth=0.8, alpha=0.3)
    ax.plot(*_thin(x, smooth), color=LIGHT[colour], linewidth=1.8, label=label)


def _points(ax: Axes, x: Array, y: Array, colour: str, label: str) -> None:
    size = 5.0 if len(x) <= 40 else 2.5
    ax.plot(
        x, y, color=LIGHT[colour], linewidth=1.1, marker="o", markersize=size,
        markeredgecolor=LIGHT["card"], markeredgewidth=0.8, label=label, zorder=4,
    )  # fmt: skip


def _kinds(ax: Axes, facts: Facts, key: str, colours: tuple[str, str]) -> None:
    """A held-out loss or accuracy over several views, and of the averaged weights, where they were measured."""
    for kind, colour in zip(KINDS, colours, strict=True):
        x, y = column(facts.history.eval, f"{key}_{kind}")
        if np.isfinite(y).any():
            _points(ax, x, y, colour, kind)


def finish(
    figure: Figure, ax: Axes, facts: Facts, size: Size, values: Array | None = None, *, marked: bool = True
) -> Figure:
    """Marks and legend; ``marked`` is False where the x axis is not samples."""
    if values is not None:
        known = values[np.isfinite(values)]
        # A gradient that explodes, or a loss that comes near zero, leaves nothing to see on a linear scale.
        if len(known) and known.min() > 0 and known.max() > 30 * np.median(known):
            ax.set_yscale("log")
            log_ticks(ax.yaxis, *ax.get_ylim())
    if marked:
        marks(ax, facts, size)
    legend(ax, size)
    return figure


def smoothed(y: Array, cuts: Iterable[int] = ()) -> Array:
    """Local lines under a Gaussian window: no lag, not across `cuts`, blind to what is not finite."""
    result = np.full(len(y), np.nan)
    bounds = [0, *cuts, len(y)]
    for begin, end in pairwise(bounds):
        part = y[begin:end]
        sigma = max(1.0, len(part) / 60)
        radius = min(int(3 * sigma), (len(part) - 1) // 2)
        kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        known = np.isfinite(part)
        if known.any():
            result[begin:end] = np.where(known, _local_lines(part, known, kernel, radius), np.nan)
    return result


def _local_lines(part: Array, known: NDArray[np.bool_], kernel: Array, radius: int) -> Array:
    """The height of a line fitted to each point's neighbours: unlike a mean, true at the two ends too."""
    offset = np.arange(-radius, radius + 1, dtype=np.float64)
    values = np.where(known, part, 0.0)

    def around(source: Array, power: int) -> Array:
        # Convolution turns the kernel round: the sign keeps "offset" the neighbour's place minus the point's.
        return np.convolve(source, kernel * (-offset) ** power, mode="same")

    s0, s1, s2 = (around(known.astype(np.float64), power) for power in range(3))
    t0, t1 = (around(values, power) for power in range(2))
    spread = s0 * s2 - s1 * s1
    lonely = spread < 1e-9 * np.maximum(s0 * s0, 1e-30)
    return np.where(lonely, t0 / np.maximum(s0, 1e-12), (s2 * t0 - s1 * t1) / np.where(lonely, 1.0, spread))


def _thin(x: Array, y: Array) -> tuple[Array, Array]:
    """At most `_POINTS` points that keep every peak: of each stretch its smallest and its largest value."""
    if len(x) <= _POINTS:
        return x, y
    keep: set[int] = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), _POINTS // 2):
        known = stretch[np.isfinite(y[stretch])]
        keep |= {int(known[y[known].argmin()]), int(known[y[known].argmax()])} if len(known) else {int(stretch[0])}
    index = np.array(sorted(keep))
    return x[index], y[index]


def _phases(facts: Facts, x: Array) -> list[int]:
    """Where in `x` (samples, rising) a new phase begins; a walk is measured at other steps than the loss."""
    lines = pairwise(facts.history.train)
    starts = [new["samples"] for old, new in lines if new.get("phase") != old.get("phase")]
    places = sorted({int(np.searchsorted(x, start)) for start in starts})
    return [place for place in places if 0 < place < len(x)]


def column(lines: list[Line], key: str) -> tuple[Array, Array]:
    """(samples, values); what is absent or no number is NaN."""
    pairs = [(line.get("samples"), line.get(key)) for line in lines]
    both = [(a, b if isinstance(b, int | float) else np.nan) for a, b in pairs if isinstance(a, int | float)]
    array = np.array(both, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]
