"""The curves of a run's report: functions from facts to a chart, or None if there is nothing to draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bellwether.trainer.metrics import KINDS, Line
from bellwether.trainer.report.chart import HEIGHT, LIGHT, SCALE, TEXT, Chart, colour_map, count_ticks, evenly
from bellwether.trainer.report.facts import SMOOTHED, SMOOTHED_SHORT, Facts, compact, finite, number, share, significant
from bellwether.trainer.scores import NAMES

Array = NDArray[np.float64]

_SMOOTH_FROM = 30  # a curve of fewer points is not smoothed
_NAMED = 6  # changes of the batch size that are marked; more would hide the curves
_BAND = 700  # points of a band: more than it has pixels, few enough for a small file


def over_samples(facts: Facts, height: float = HEIGHT) -> Chart:
    """A chart over the samples of the run. All charts share one x axis, so that an event is at the same place in each."""
    chart = Chart("samples", height)
    count_ticks(chart.ax.xaxis)
    chart.ax.set_xlim(-0.01 * facts.reach, 1.01 * facts.reach or 1.0)
    return chart


def curve(
    facts: Facts, event: str, key: str, colour: str, *, smooth: bool = True, from_zero: bool = False
) -> Chart | None:
    """A chart of one value.

    Args:
        event: the lines of the history that hold it.
        smooth: draw a noisy curve raw and faint, with its smoothed course on top.
        from_zero: begin the y axis at 0; otherwise it is logarithmic if a few values are very large, see `finish`.
    """
    lines: list[Line] = getattr(facts.history, event)
    x, y = column(lines, key)
    if not np.isfinite(y).any():
        return None
    chart = over_samples(facts)
    chart.ax.yaxis.set_major_formatter(lambda value, _: compact(value))
    if smooth:
        noisy(chart, facts, lines, key, colour)
    else:
        chart.ax.plot(x, y, color=LIGHT[colour])
        tip(chart, lines, key, "", colour)
    if from_zero:
        chart.ax.set_ylim(bottom=0)
    elif np.nanmin(y) < 0:
        chart.zero_line()
    return finish(chart, facts, [] if from_zero else y)


def loss(facts: Facts) -> Chart | None:
    """Training loss, raw and smoothed, the held-out points, and the losses of uniform guessing and of token frequencies alone."""
    x, y = column(facts.history.train, "loss")
    _, held = column(facts.history.eval, "loss")
    if not np.isfinite([*y, *held]).any():
        return None
    chart = over_samples(facts)
    noisy(chart, facts, facts.history.train, "loss", "blue", "training")
    _held_out(chart, facts, "loss", number)
    if facts.expectation is not None:
        entries, level = facts.expectation
        chart.level(level, f"guessing: ln {entries:,} = {level:.2f}")
    if facts.unigram is not None:
        chart.level(facts.unigram, f"token frequencies alone: {facts.unigram:.2f}")
    lost = x[~np.isfinite(y)]
    if len(lost):
        chart.ax.plot(
            lost, np.full(len(lost), 0.015), "x", color=LIGHT["bad"], transform=chart.ax.get_xaxis_transform(),
            label="not finite", clip_on=False,
        )  # fmt: skip
    return finish(chart, facts, [*y, *held])


def accuracy(facts: Facts) -> Chart | None:
    if not np.isfinite(column(facts.history.eval, "accuracy")[1]).any():
        return None
    chart = over_samples(facts)
    _held_out(chart, facts, "accuracy", share)
    chart.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    return finish(chart, facts)


def scores(facts: Facts) -> Chart | None:
    """The scores of a fine-tuned model, and which of its evaluations was the best."""
    names = [name for name in NAMES if np.isfinite(column(facts.history.eval, name)[1]).any()]
    if not names:
        return None
    chart = over_samples(facts)
    for name, colour in zip(names, ("orange", "plum", "green", "blue"), strict=False):
        _line(chart, facts, name, name.replace("_", " "), colour, lambda value: f"{value:.4f}")
    score, _, step = facts.best_score
    at = next((line["samples"] for line in facts.history.eval if line["step"] == step), None)
    if at is not None:
        chart.ax.axvline(at, color=LIGHT["mark"], linewidth=0.9, linestyle="--", zorder=1, label=f"best {score}")
    return finish(chart, facts)


def noise_scale(facts: Facts) -> Chart | None:
    """The course of the gradient noise scale over a long and a short horizon, and the batch size of the run."""
    lines = facts.history.train
    x, y = column(lines, "noise_scale")
    _, error = column(lines, "noise_scale_error")
    if not (np.isfinite(y) & (y > 0)).any():
        return None
    chart = over_samples(facts)
    chart.ax.set_yscale("log")
    _band(chart, x, np.maximum(y - error, y / 10), y + error, "plum", "± its standard error")
    every = facts.noise.every if facts.noise is not None else 1
    recent = column(lines, "noise_scale_recent")[1]
    if np.isfinite(recent).any():
        chart.ax.plot(
            x, recent, color=LIGHT["plum"], linewidth=0.8, alpha=0.6, label=f"over {SMOOTHED_SHORT * every:,} steps"
        )
    chart.ax.plot(x, y, color=LIGHT["plum"], label=f"over {SMOOTHED * every:,} steps")
    tip(chart, lines, "noise_scale", "noise scale", "plum", lambda value: f"{value:,.4g}")
    if facts.batch_changes:
        _, batch = column(lines, "batch")
        chart.ax.step(x, batch, where="pre", color=LIGHT["mark"], linewidth=1.1, linestyle="--", label="batch")
    else:
        for size in facts.batch_sizes:
            chart.level(size, f"batch {size:,}")
    chart.log_y()
    return finish(chart, facts)


def trust_ratio(facts: Facts) -> Chart | None:
    """The smallest, the median and the largest trust ratio of all layers."""
    lines = [{**line, **line["trust_ratio"]} for line in facts.history.train if "trust_ratio" in line]
    (x, low), (_, middle), (_, high) = (column(lines, key) for key in ("min", "median", "max"))
    if not (np.isfinite(middle) & (middle > 0)).any():
        return None
    chart = over_samples(facts)
    chart.ax.set_yscale("log")
    low, middle, high = (np.where(values > 0, values, np.nan) for values in (low, middle, high))
    _band(chart, x, low, high, "green", "smallest to largest")
    chart.ax.plot(x, middle, color=LIGHT["green"], label="median layer")
    for key, name in (("max", "largest"), ("median", "median"), ("min", "smallest")):
        tip(chart, lines, key, name, "green")
    chart.log_y()
    return finish(chart, facts)


def between(facts: Facts) -> Chart | None:
    """A line for each measured step: the loss between the weights before and after it, relative to before."""
    lines = [line for line in facts.history.between if np.isfinite(line["losses"]).all()]
    if not lines:
        return None
    chart = Chart("share of the step")
    colours = colour_map(SCALE[:-1])
    for index, line in enumerate(lines):
        losses = np.array(line["losses"])
        label = f"step {line['step']:,}" if index in (0, len(lines) - 1) else None
        colour = colours(index / max(1, len(lines) - 1))
        chart.ax.plot(np.linspace(0, 1, len(losses)), losses - losses[0], color=colour, label=label)
    chart.zero_line()
    chart.ax.set_xlim(-0.01, 1.01)
    chart.ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["before", "¼", "½", "¾", "after"])
    chart.ax.yaxis.set_major_formatter(lambda value, _: compact(value))
    chart.legend()
    return chart


def noisy(chart: Chart, facts: Facts, lines: list[Line], key: str, colour: str, label: str = "") -> None:
    """A noisy curve: raw and faint, with its smoothed course on top."""
    x, y = column(lines, key)
    if len(x) < _SMOOTH_FROM:
        chart.ax.plot(x, y, color=LIGHT[colour], marker="o", markersize=3, label=label)
    else:
        cuts = np.searchsorted(x, [samples for samples, _ in facts.boundaries], side="right")
        chart.ax.plot(x, y, color=LIGHT[colour], linewidth=0.8, alpha=0.3)
        chart.ax.plot(x, smoothed(y, cuts), color=LIGHT[colour], linewidth=1.8, label=label)
    tip(chart, lines, key, label, colour)


def tip(
    chart: Chart, lines: list[Line], key: str, name: str, colour: str, form: Callable[[float], str] = significant
) -> None:
    """Add the measured values of a key to the chart's tooltip."""
    chart.tip(name, colour, [
        (line["samples"], line[key], f"step {line['step']:,} · {line['samples']:,} samples", form(line[key]))
        for line in lines if finite(line.get(key))
    ])  # fmt: skip


def finish(chart: Chart, facts: Facts, values: Any = ()) -> Chart:
    """Add phases, restarts and the legend; a logarithmic y axis if the largest of `values` would hide all others."""
    chart.log_y_if_needed(values)
    _marks(chart, facts)
    chart.legend()
    return chart


def _held_out(chart: Chart, facts: Facts, key: str, form: Callable[[float], str]) -> None:
    """The held-out values: plain, over several views, and of the averaged weights, as far as they were measured."""
    keys = [("held-out", key), *((kind, f"{key}_{kind}") for kind in KINDS)]
    for (name, each), colour in zip(keys, ("orange", "plum", "green"), strict=True):
        _line(chart, facts, each, name, colour, form)


def _line(chart: Chart, facts: Facts, key: str, name: str, colour: str, form: Callable[[float], str]) -> None:
    """One value of the evaluations, with a point for each."""
    x, y = column(facts.history.eval, key)
    if np.isfinite(y).any():
        chart.ax.plot(
            x, y, color=LIGHT[colour], linewidth=1.1, marker="o", markersize=5.0 if len(x) <= 40 else 2.5,
            markeredgecolor=LIGHT["card"], markeredgewidth=0.8, label=name, zorder=4,
        )  # fmt: skip
        tip(chart, facts.history.eval, key, name, colour, form)


def _band(chart: Chart, x: Array, low: Array, high: Array, colour: str, label: str) -> None:
    limits = zip(*evenly(list(zip(x, low, high, strict=True)), _BAND), strict=True)
    chart.ax.fill_between(*limits, color=LIGHT[colour], alpha=0.18, linewidth=0, label=label)


def _marks(chart: Chart, facts: Facts) -> None:
    """Thin lines where a phase begins or the batch grows, dotted ones where the run was restarted."""
    ax = chart.ax
    changes = facts.batch_changes if len(facts.batch_changes) <= _NAMED else []
    marks = [*facts.boundaries, *changes]
    if marks:
        # Room above the curves for the names of the phases.
        scale = ax.yaxis.get_transform()
        low, high = scale.transform(ax.get_ylim())
        ax.set_ylim(top=float(scale.inverted().transform([low + (high - low) * 1.08])[0]))
    for samples, label in marks:
        ax.axvline(samples, color=LIGHT["mark"], linewidth=0.9, zorder=1)
        right = samples > 0.8 * facts.reach  # the name would leave the chart on the other side
        ax.annotate(
            label, (samples, 1), (-4 if right else 4, -2), xycoords=("data", "axes fraction"), va="top",
            textcoords="offset points", ha="right" if right else "left", fontsize=TEXT - 1, color=LIGHT["muted"],
        )  # fmt: skip
    for index, start in enumerate(facts.history.restarts):
        once = "restart" if index == 0 else None
        ax.axvline(start["samples"], color=LIGHT["mark"], linewidth=1.1, linestyle=":", zorder=1, label=once)


def smoothed(y: Array, cuts: Iterable[int] = ()) -> Array:
    """Local linear regression, twice for a smooth course: no lag, not across `cuts`; gaps stay gaps."""
    from scipy.signal import savgol_filter

    result = np.full(len(y), np.nan)
    for begin, end in pairwise([0, *cuts, len(y)]):
        part = y[begin:end]
        known = np.flatnonzero(np.isfinite(part))
        if len(known):
            course = np.interp(np.arange(len(part)), known, part[known])
            half = min(max(1, len(part) // 48), (len(part) - 1) // 2)
            for _ in range(2):
                course = savgol_filter(course, 2 * half + 1, polyorder=min(1, half))
            result[begin:end][known] = course[known]
    return result


def column(lines: list[Line], key: str) -> tuple[Array, Array]:
    """(samples, values); what is absent is NaN."""
    array: Array = np.array([(line["samples"], line.get(key)) for line in lines], dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]
