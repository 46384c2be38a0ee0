"""The curves of a run's report: functions from facts to a chart, or None if there is nothing to draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bellwether.trainer.metrics import KINDS, Line
from bellwether.trainer.report.chart import DOTTED, HEIGHT, LIGHT, TEXT, Chart, count_ticks
from bellwether.trainer.report.facts import Facts, compact, finite, number, share

Array = NDArray[np.float64]
Draw = Callable[[Facts], Chart | None]

# Light grows with the value, evenly; readable on a white and on a dark page, and in grey.
SCALE = ("#1c2444", "#27497a", "#31778f", "#5ba48b", "#a9c77f", "#f1e6a4")
_SMOOTH_FROM = 30  # a curve of fewer points is not smoothed
_POINTS = 1400  # more than a screen has columns, few enough for a small file


def significant(value: float) -> str:
    return f"{value:.4g}".replace("e-0", "e-")


def over_samples(facts: Facts, height: float = HEIGHT) -> Chart:
    """A chart over the samples of the run. All charts share one x axis, so that an event is at the same place in each."""
    chart = Chart("samples", height)
    count_ticks(chart.ax.xaxis)
    chart.ax.set_xlim(-0.01 * facts.reach, 1.01 * facts.reach or 1.0)
    return chart


def curve(
    event: str, key: str, colour: str, *, smooth: bool = True, from_zero: bool = False, zero_line: bool = False,
    form: Callable[[float], str] = compact, robust: bool = False,
) -> Draw:  # fmt: skip
    """A chart of one value.

    Args:
        event: the lines of the history that hold it.
        smooth: draw a noisy curve raw and faint, with its smoothed course on top.
        from_zero: begin the y axis at 0.
        zero_line: mark y = 0.
        form: of the labels of the y axis.
        robust: use a logarithmic axis if a few values are very large, see `finish`.
    """

    def draw(facts: Facts) -> Chart | None:
        lines: list[Line] = getattr(facts.history, event)
        x, y = column(lines, key)
        if not np.isfinite(y).any():
            return None
        chart = over_samples(facts)
        if smooth:
            noisy(chart, facts, lines, key, colour)
        else:
            chart.ax.plot(*_thin(x, y), color=LIGHT[colour], linewidth=1.7)
            tip(chart, lines, key, "", colour)
        if from_zero:
            chart.ax.set_ylim(bottom=0)
        if zero_line:
            chart.ax.axhline(0, color=LIGHT["mark"], linewidth=0.9, zorder=1)
        chart.ax.yaxis.set_major_formatter(lambda value, _: form(value))
        return finish(chart, facts, y if robust else None)

    return draw


def loss(facts: Facts) -> Chart | None:
    """Training loss, raw and smoothed, the held-out points, and the loss of uniform guessing."""
    x, y = column(facts.history.train, "loss")
    _, held = column(facts.history.eval, "loss")
    if not np.isfinite(y).any() and not np.isfinite(held).any():
        return None
    chart = over_samples(facts)
    noisy(chart, facts, facts.history.train, "loss", "blue", "training")
    _held_out(chart, facts, "loss", number)
    if facts.expectation is not None:
        entries, level = facts.expectation
        chart.level(level, f"guessing: ln {entries:,} = {level:.2f}")
    lost = x[~np.isfinite(y)]
    if len(lost):
        chart.ax.plot(
            lost, np.full(len(lost), 0.015), "x", color=LIGHT["bad"], transform=chart.ax.get_xaxis_transform(),
            markersize=5, label="not finite", clip_on=False,
        )  # fmt: skip
    return finish(chart, facts, np.concatenate([y, held]))


def accuracy(facts: Facts) -> Chart | None:
    if not np.isfinite(column(facts.history.eval, "accuracy")[1]).any():
        return None
    chart = over_samples(facts)
    _held_out(chart, facts, "accuracy", share)
    chart.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    return finish(chart, facts)


def noise_scale(facts: Facts) -> Chart | None:
    """The critical batch size predicted from gradient noise, with its standard error, and the batch size of the run."""
    lines = facts.history.train
    x, y = column(lines, "noise_scale")
    _, error = column(lines, "noise_scale_error")
    if not (np.isfinite(y) & (y > 0)).any():
        return None
    chart = over_samples(facts)
    chart.ax.set_yscale("log")
    _band(chart, x, np.maximum(y - error, y / 10), y + error, "plum", "± its standard error")
    chart.ax.plot(*_thin(x, y), color=LIGHT["plum"], linewidth=1.7, label="noise scale")
    tip(chart, lines, "noise_scale", "noise scale", "plum", lambda value: f"{value:,.4g}")
    for batch in dict.fromkeys(b for b in facts.over_phases("batch", "global") if isinstance(b, int)):
        chart.level(batch, f"batch {batch:,}")
    chart.log_y()
    return finish(chart, facts)


def trust_ratio(facts: Facts) -> Chart | None:
    """The smallest, the median and the largest trust ratio of all layers."""
    lines = [line for line in facts.history.train if isinstance(line.get("trust_ratio"), dict)]
    flat = [{"step": line["step"], "samples": line["samples"], **line["trust_ratio"]} for line in lines]
    (x, low), (_, middle), (_, high) = (column(flat, key) for key in ("min", "median", "max"))
    if not (np.isfinite(middle) & (middle > 0)).any():
        return None
    chart = over_samples(facts)
    chart.ax.set_yscale("log")
    low, middle, high = (np.where(values > 0, values, np.nan) for values in (low, middle, high))
    pick = np.unique(np.linspace(0, len(x) - 1, min(len(x), _POINTS // 2)).astype(int))
    _band(chart, x[pick], low[pick], high[pick], "green", "smallest to largest")
    chart.ax.plot(x[pick], middle[pick], color=LIGHT["green"], linewidth=1.7, label="median layer")
    for key, name in (("max", "largest"), ("median", "median"), ("min", "smallest")):
        tip(chart, flat, key, name, "green")
    chart.log_y()
    return finish(chart, facts)


def between(facts: Facts) -> Chart | None:
    """A line for each measured step: the loss between the weights before and after it, relative to before."""
    lines = [
        line for line in facts.history.between if all(finite(x) for x in line["losses"]) and len(line["losses"]) > 1
    ]
    if not lines:
        return None
    from matplotlib.colors import LinearSegmentedColormap

    chart = Chart("share of the step")
    colours = LinearSegmentedColormap.from_list("steps", SCALE[:-1])
    for index, line in enumerate(lines):
        losses: Array = np.asarray(line["losses"], dtype=np.float64)
        label = f"step {line['step']:,}" if index in (0, len(lines) - 1) else None
        colour = colours(index / max(1, len(lines) - 1))
        chart.ax.plot(np.linspace(0, 1, len(losses)), losses - losses[0], color=colour, linewidth=1.5, label=label)
    chart.ax.axhline(0, color=LIGHT["mark"], linewidth=0.9, zorder=1)
    chart.ax.set_xlim(-0.01, 1.01)
    chart.ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["before", "¼", "½", "¾", "after"])
    chart.ax.yaxis.set_major_formatter(lambda value, _: compact(value))
    chart.legend()
    return chart


def noisy(chart: Chart, facts: Facts, lines: list[Line], key: str, colour: str, label: str = "") -> None:
    """A noisy curve: raw and faint, with its smoothed course on top."""
    x, y = column(lines, key)
    if len(x) < _SMOOTH_FROM:
        chart.ax.plot(x, y, color=LIGHT[colour], linewidth=1.7, marker="o", markersize=3, label=label or None)
    else:
        smooth = smoothed(y, _phase_starts(facts, x))
        chart.ax.plot(*_thin(x, y), color=LIGHT[colour], linewidth=0.8, alpha=0.3)
        chart.ax.plot(*_thin(x, smooth), color=LIGHT[colour], linewidth=1.8, label=label or None)
    tip(chart, lines, key, label, colour)


def tip(
    chart: Chart, lines: list[Line], key: str, name: str, colour: str, form: Callable[[float], str] = significant
) -> None:
    """Add the measured values of a key to the chart's tooltip."""
    chart.tip(name, colour, [
        (line["samples"], line[key], f"step {line['step']:,} · {line['samples']:,} samples", form(line[key]))
        for line in lines if finite(line.get(key))
    ])  # fmt: skip


def finish(chart: Chart, facts: Facts, values: Array | None = None) -> Chart:
    """Add phases, restarts and the legend; a logarithmic y axis if the largest of `values` would hide all others."""
    if values is not None:
        known = values[np.isfinite(values)]
        if len(known) and known.min() > 0 and known.max() > 30 * np.median(known):
            chart.log_y()
    _marks(chart, facts)
    chart.legend()
    return chart


def _held_out(chart: Chart, facts: Facts, key: str, form: Callable[[float], str]) -> None:
    """The held-out values: plain, over several views, and of the averaged weights, as far as they were measured."""
    keys = [("held-out", key), *((kind, f"{key}_{kind}") for kind in KINDS)]
    for (name, each), colour in zip(keys, ("orange", "plum", "green"), strict=True):
        x, y = column(facts.history.eval, each)
        if np.isfinite(y).any():
            chart.ax.plot(
                x, y, color=LIGHT[colour], linewidth=1.1, marker="o", markersize=5.0 if len(x) <= 40 else 2.5,
                markeredgecolor=LIGHT["card"], markeredgewidth=0.8, label=name, zorder=4,
            )  # fmt: skip
            tip(chart, facts.history.eval, each, name, colour, form)


def _band(chart: Chart, x: Array, low: Array, high: Array, colour: str, label: str) -> None:
    chart.ax.fill_between(x, low, high, color=LIGHT[colour], alpha=0.18, linewidth=0, label=label)


def _marks(chart: Chart, facts: Facts) -> None:
    """Thin lines where a phase begins, dotted ones where the run was restarted."""
    ax = chart.ax
    if facts.boundaries:
        # Room above the curves for the names of the phases.
        scale = ax.yaxis.get_transform()
        low, high = scale.transform(ax.get_ylim())
        ax.set_ylim(top=float(scale.inverted().transform([low + (high - low) * 1.08])[0]))
    for samples, label in facts.boundaries:
        ax.axvline(samples, color=LIGHT["mark"], linewidth=0.9, zorder=1)
        right = samples > 0.8 * facts.reach  # the name would leave the chart on the other side
        ax.annotate(
            label, (samples, 1), (-4 if right else 4, -2), xycoords=("data", "axes fraction"), va="top",
            textcoords="offset points", ha="right" if right else "left", fontsize=TEXT - 1, color=LIGHT["muted"],
        )  # fmt: skip
    for index, start in enumerate(facts.history.restarts):
        once = "restart" if index == 0 else None
        ax.axvline(start["samples"], color=LIGHT["mark"], linewidth=1.1, linestyle=DOTTED, zorder=1, label=once)


def smoothed(y: Array, cuts: Iterable[int] = ()) -> Array:
    """Local linear regression with a Gaussian window: no lag, not across `cuts`; values that are not finite are ignored."""
    result = np.full(len(y), np.nan)
    for begin, end in pairwise([0, *cuts, len(y)]):
        part = y[begin:end]
        sigma = max(1.0, len(part) / 60)
        radius = min(int(3 * sigma), (len(part) - 1) // 2)
        kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        known = np.isfinite(part)
        if known.any():
            result[begin:end] = np.where(known, _local_lines(part, known, kernel, radius), np.nan)
    return result


def _local_lines(part: Array, known: NDArray[np.bool_], kernel: Array, radius: int) -> Array:
    """The value of a line fitted to each point's neighbours: unlike a mean, unbiased at the two ends too."""
    offset = np.arange(-radius, radius + 1, dtype=np.float64)
    values = np.where(known, part, 0.0)

    def around(source: Array, power: int) -> Array:
        # Convolution reverses the kernel: the sign keeps "offset" the neighbour's index minus the point's.
        return np.convolve(source, kernel * (-offset) ** power, mode="same")

    s0, s1, s2 = (around(known.astype(np.float64), power) for power in range(3))
    t0, t1 = (around(values, power) for power in range(2))
    spread = s0 * s2 - s1 * s1
    lonely = spread < 1e-9 * np.maximum(s0 * s0, 1e-30)
    return np.where(lonely, t0 / np.maximum(s0, 1e-12), (s2 * t0 - s1 * t1) / np.where(lonely, 1.0, spread))


def _thin(x: Array, y: Array) -> tuple[Array, Array]:
    """At most `_POINTS` points that keep every peak: the smallest and the largest value of each stretch."""
    if len(x) <= _POINTS:
        return x, y
    keep: set[int] = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), _POINTS // 2):
        known = stretch[np.isfinite(y[stretch])]
        keep |= {int(known[y[known].argmin()]), int(known[y[known].argmax()])} if len(known) else {int(stretch[0])}
    index = np.array(sorted(keep))
    return x[index], y[index]


def _phase_starts(facts: Facts, x: Array) -> list[int]:
    """Indices into `x` (samples, ascending) where a new phase begins."""
    lines = pairwise(facts.history.train)
    starts = [new["samples"] for old, new in lines if new.get("phase") != old.get("phase")]
    places = sorted({int(np.searchsorted(x, start)) for start in starts})
    return [place for place in places if 0 < place < len(x)]


def column(lines: list[Line], key: str) -> tuple[Array, Array]:
    """(samples, values); what is absent or no number is NaN."""
    pairs = [(line["samples"], value if isinstance(value := line.get(key), int | float) else np.nan) for line in lines]
    array = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]
