"""The picture of `bellwether frontier`: time against cost, a point for each number of GPUs and batch size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bellwether.experiments.planner.frontier import Option, best_batch
from bellwether.experiments.report.facts import time_unit


def draw(
    options: Sequence[Option], front: Sequence[Option], limit: Option, chosen: Option | None, money: bool, path: Path
) -> None:
    """Draw time against cost, or against GPU hours without a price, as a PNG file."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    from bellwether.trainer.report.chart import LIGHT, log_ticks, png, style

    ordered = sorted(front, key=lambda option: option.hours.middle)
    length, unit = time_unit(median(option.hours.middle for option in ordered))

    def time(hours: float) -> float:
        return hours / length

    with style():
        figure = Figure(figsize=(10.5, 6))
        ax = figure.add_subplot()
        ax.grid(True)
        ax.set_xscale("log")
        ax.set_yscale("log")
        x = [time(option.hours.middle) for option in options]
        ax.plot(
            x,
            [o.expense for o in options],
            ".",
            color=LIGHT["mark"],
            alpha=0.5,
            markersize=5,
            label="GPUs x batch size",
        )
        for number, option in enumerate(ordered):  # an error of the time is one of the cost
            spent = option.cost or option.gpu_hours
            ends = [time(option.hours.low), time(option.hours.high)], [spent.low, spent.high]
            ax.plot(*ends, color=LIGHT["blue"], alpha=0.35, linewidth=3, label=None if number else "90 % interval")
        x = [time(option.hours.middle) for option in ordered]
        ax.plot(x, [o.expense for o in ordered], color=LIGHT["blue"], marker="o", markersize=5, label="Pareto front")
        for option in best_batch(ordered):
            ax.annotate(
                f"{option.gpus:,} x {option.batch:,}", (time(option.hours.middle), option.expense), textcoords="offset points",
                xytext=(9, 4), fontsize=9, color=LIGHT["muted"],
            )  # fmt: skip
        if limit is not ordered[0]:
            ax.axvline(
                time(limit.hours.middle),
                color=LIGHT["muted"],
                linestyle=(0, (5, 3)),
                linewidth=1,
                label="do not go beyond",
            )
        if chosen is not None:
            ax.plot(
                time(chosen.hours.middle), chosen.expense, "D", color=LIGHT["orange"], markersize=10, zorder=6,
                label=f"recommended: {chosen.gpus:,} GPUs, batch {chosen.batch:,}",
            )  # fmt: skip
        highest, lowest = max(o.expense for o in ordered), min((o.cost or o.gpu_hours).low for o in ordered)
        ax.set_ylim(lowest / 1.1, min(max(o.expense for o in options), 3 * highest) * 1.1)
        log_ticks(ax.xaxis, *ax.get_xlim())
        log_ticks(ax.yaxis, *ax.get_ylim())
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_locator(NullLocator())
        ax.set_xlabel({"h": "hours", "min": "minutes", "s": "seconds"}[unit] + " to the target")
        ax.set_ylabel("cost" if money else "GPU hours")
        ax.set_title("time and cost, by number of GPUs and batch size")
        ax.legend(loc="upper right")
        png(figure, path)
