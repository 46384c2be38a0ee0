"""The picture of `bellwether branch`: the critical batch over a run, beside its noise scale and its batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bellwether.experiments.branch.points import Base
from bellwether.experiments.branch.study import Result


def draw(base: Base, results: Sequence[Result], schedule: Sequence[tuple[int, int]], path: Path) -> None:
    """Draw as a PNG file."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    from bellwether.trainer.report.chart import LIGHT, count_ticks, log_ticks, png, style

    end = base.planned[-1].first_sample + base.planned[-1].samples
    top = max(factor * result.point.batch for result in results for factor in result.losses)
    with style():
        figure = Figure(figsize=(10.5, 5))
        ax = figure.add_subplot()
        ax.grid(True)
        ax.set_yscale("log")
        noise = [
            (line["samples"], line["noise_scale"]) for line in base.history.train if (line.get("noise_scale") or 0) > 0
        ]
        if noise:
            ax.plot(
                *zip(*noise, strict=True), color=LIGHT["plum"], linewidth=1.2, alpha=0.7, label="gradient noise scale"
            )
        lines = [line for line in base.history.train if line.get("batch")]
        if lines:
            ax.step(
                [0, *(line["samples"] for line in lines)], [lines[0]["batch"], *(line["batch"] for line in lines)], where="pre",
                color=LIGHT["muted"], linewidth=1.2, label="batch of the run",
            )  # fmt: skip
        first = results[0].point.phase.first_sample
        steps = [*((first + at, size) for at, size in schedule), (end, schedule[-1][1])]
        ax.step(
            *zip(*steps, strict=True), where="post", color=LIGHT["orange"], linewidth=1.4, linestyle=(0, (5, 3)),
            label="batch warm-up from it",
        )  # fmt: skip
        x = [result.point.samples for result in results]
        y = [result.batch for result in results]
        bars = [
            [result.batch - result.low for result in results],
            [(top if result.high is None else result.high) - result.batch for result in results],
        ]
        ax.errorbar(
            x, y, [[max(0.0, bar) for bar in side] for side in bars], color=LIGHT["blue"], marker="o", markersize=6, capsize=4,
            linewidth=1.8, elinewidth=1.2, label="critical batch, by branches, with its 90 % interval", zorder=5,
        )  # fmt: skip
        open_ends = [(r.point.samples, top) for r in results if r.high is None]
        if open_ends:
            ax.plot(
                *zip(*open_ends, strict=True), "^", color=LIGHT["blue"], markersize=8, linestyle="none", zorder=6,
                label="it reaches beyond the largest that was tried",
            )  # fmt: skip
        count_ticks(ax.xaxis)
        ax.set_xlim(-0.02 * end, 1.02 * end)
        seen = [*y, *(value for _, value in noise), top, *(r.low for r in results), *(size for _, size in schedule)]
        ax.set_ylim(min(seen) / 1.5, max(seen) * 1.8)
        log_ticks(ax.yaxis, *ax.get_ylim())
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("samples")
        ax.set_ylabel("batch")
        ax.set_title(f"{base.config.name}: how far the batch can grow")
        handles = sorted(
            zip(*ax.get_legend_handles_labels(), strict=True), key=lambda pair: not pair[1].startswith("critical")
        )
        ax.legend(*zip(*handles, strict=True), loc="best")
        png(figure, path)
