"""Where the weights went: angle, distance, and the loss between two iterates. Drawn where the config's `trajectory` asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bellwether.trainer.report.canvas import LIGHT, Size, axes
from bellwether.trainer.report.curves import Array, column, finish, noisy
from bellwether.trainer.report.facts import Facts, compact, finite
from bellwether.trainer.report.heatmap import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cosine(facts: Facts, size: Size) -> Figure | None:
    x, y = column(facts.history.walk, "cosine")
    if not np.isfinite(y).any():
        return None
    figure, ax = axes(facts, size, "Cosine between successive updates")
    ax.axhline(0, color=LIGHT["mark"], linewidth=0.9, zorder=1)
    noisy(ax, facts, x, y, "blue")
    return finish(figure, ax, facts, size)


def distance(facts: Facts, size: Size) -> Figure | None:
    x, y = column(facts.history.walk, "distance")
    if not np.isfinite(y).any():
        return None
    figure, ax = axes(facts, size, "Distance from the start")
    ax.plot(x, y, color=LIGHT["green"], linewidth=1.7)
    ax.set_ylim(bottom=0)
    return finish(figure, ax, facts, size)


def between(facts: Facts, size: Size) -> Figure | None:
    """One line a measured step: the loss on the way, above that of where the step began."""
    lines = [
        line for line in facts.history.between if all(finite(x) for x in line["losses"]) and len(line["losses"]) > 1
    ]
    if not lines:
        return None
    from matplotlib.colors import LinearSegmentedColormap

    figure, ax = axes(facts, size, "Loss between successive iterates")
    colours = LinearSegmentedColormap.from_list("walk", COLOURS[:-1])
    for index, line in enumerate(lines):
        losses: Array = np.asarray(line["losses"], dtype=np.float64)
        named = index in (0, len(lines) - 1)
        ax.plot(
            np.linspace(0, 1, len(losses)), losses - losses[0], color=colours(index / max(1, len(lines) - 1)),
            linewidth=1.5, label=f"step {line['step']:,}" if named else None,
        )  # fmt: skip
    ax.axhline(0, color=LIGHT["mark"], linewidth=0.9, zorder=1)
    ax.set_xlim(-0.01, 1.01)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["before", "¼", "½", "¾", "after"])
    ax.set_xlabel("share of the step", fontsize=size.text, loc="right", labelpad=2)
    ax.yaxis.set_major_formatter(lambda value, _: compact(value))
    return finish(figure, ax, facts, size, marked=False)
