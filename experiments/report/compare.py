"""The optimizers of a sweep ranked by the time to the target, as a table and as a picture."""

from __future__ import annotations

import math

import numpy as np

from bellwether.experiments.analysis.comparison import LARGEST_RATIO, Comparison, Standing
from bellwether.experiments.report.batch_chart import COLOURS
from bellwether.experiments.report.facts import Facts
from bellwether.trainer.report.chart import HEIGHT, LIGHT, Chart
from bellwether.trainer.report.html import Table


def table(found: Comparison | None) -> Table:
    """The standings."""
    return Table(COLUMNS, found.standings if found is not None else [])


def _places(standing: Standing) -> str:
    low, high = standing.places
    return str(low) if low == high else f"{low} to {high}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "missed"


COLUMNS = [
    ("optimizer", "name", lambda standing: standing.name),
    ("place", "n", _places),
    ("score", "n", lambda standing: f"{standing.score:.3f}"),
    ("of the fastest", "n", lambda standing: _ratio(standing.ratio)),
    ("mean rank", "n", lambda standing: f"{standing.rank:.2f}"),
    ("reached", "n", lambda standing: f"{standing.reached} of {standing.races}"),
]


def picture(facts: Facts) -> Chart | None:
    """The picture for the report of a sweep."""
    return None if facts.comparison is None else draw(facts.comparison)


def draw(found: Comparison, by: str = "steps") -> Chart:
    """The performance profiles: the share of the races that an optimizer won or lost by at most a factor."""
    chart = Chart(f"{by} to the target, relative to the fastest", HEIGHT * 1.15)
    ratios = np.linspace(1.0, LARGEST_RATIO, 301)
    styles = ("-", "--", ":")
    order = sorted(standing.name for standing in found.standings)  # as in the other pictures of the page
    for standing in found.standings:
        index = order.index(standing.name)
        colour, line = COLOURS[index % len(COLOURS)], styles[index // len(COLOURS) % len(styles)]
        share = found.profile(standing.name, ratios)
        chart.ax.plot(ratios, share, line, drawstyle="steps-post", color=LIGHT[colour], label=standing.name)
        chart.tip(
            standing.name,
            colour,
            [(x, y, f"{x:.2f} times", f"{y:.0%}") for x, y in zip(ratios.tolist(), share.tolist(), strict=True)],
        )
    chart.ax.set_ylim(-0.03, 1.03)
    chart.ax.set_xlim(1.0, LARGEST_RATIO)
    chart.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    chart.legend()
    return chart
