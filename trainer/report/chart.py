"""Charts of the reports: one matplotlib look, SVG that takes its colours from the page, PNG files, points for tooltips.

Each chart is drawn once, at a size that a phone shows whole and a desk shows two in a row. It is drawn in the colours of a
light page; in the SVG each colour becomes a CSS variable, so that the same picture suits a dark page, a phone and paper.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from markupsafe import Markup

from bellwether.trainer.report.facts import compact

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

#: CSS variable -> (colour on a light page, colour on a dark page). The light ones are unique: `Chart.svg` looks for them.
PALETTE = {
    "card": ("#ffffff", "#1c1f23"),
    "ink": ("#22262b", "#e9e6df"),
    "muted": ("#6a717a", "#9ba1a8"),
    "grid": ("#e7e4de", "#2e3237"),
    "mark": ("#a9a59c", "#62676d"),
    "blue": ("#2f6194", "#82b4e3"),
    "orange": ("#c8552b", "#f08f68"),
    "green": ("#3f7d5a", "#7fc29b"),
    "plum": ("#7d5490", "#c39ad6"),
    "gold": ("#a87f12", "#e3bd5c"),
    "teal": ("#1f8a94", "#6cc7cf"),
    "bad": ("#b3261e", "#ff8a80"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}
# Light grows with the value, evenly; readable on a white and on a dark page, and in grey.
SCALE = ("#1c2444", "#27497a", "#31778f", "#5ba48b", "#a9c77f", "#f1e6a4")
WIDTH, HEIGHT, TEXT = 410.0, 245.0, 11.0  #: of a chart and its letters, in points: pixels of the page at natural size
LETTER = 0.62  #: width of a letter relative to its height
_STYLE = Path(__file__).with_name("report.mplstyle")
_COLOURS = {
    "text.color": "ink", "axes.edgecolor": "grid", "grid.color": "grid", "axes.labelcolor": "muted",
    "axes.titlecolor": "muted", "xtick.color": "muted", "ytick.color": "muted", "legend.labelcolor": "muted",
}  # fmt: skip
_TIPS = 240  # points of a curve that the tooltip stops at: half a chart's width in pixels

T = TypeVar("T")  #: what a report is about: the facts of a run, or those of a sweep
Points = Sequence[tuple[float, float, str, str]]
Draw = Callable[[T], "Chart | None"]


@dataclass(frozen=True)
class Picture(Generic[T]):
    """One picture of a report. `draw` returns None if the facts have nothing to show."""

    key: str
    title: str
    note: str
    draw: Draw[T]
    expected: bool = False  #: its absence is worth a note on the page
    svg: Markup | None = None  #: once it is drawn
    tips: Sequence[dict[str, Any]] = ()  #: the curves of its tooltip, once it is drawn


def style() -> AbstractContextManager[None]:
    """matplotlib's settings for the reports, whatever the user's own are."""
    from matplotlib import style

    return style.context([_STYLE, {key: LIGHT[name] for key, name in _COLOURS.items()}], after_reset=True)


def draw(sections: Mapping[str, Sequence[Picture[T]]], facts: T, plots: Path | None) -> dict[str, list[Picture[T]]]:
    """Draw the pictures of each section, for the page and, unless `plots` is None, as ``<plots>/<key>.png``.

    Returns:
        the pictures to show: those that have something to show, or whose absence is worth a note.
    """
    if plots is not None:
        plots.mkdir(parents=True, exist_ok=True)
    with style():
        drawn = {key: [_draw(each, facts, plots) for each in pictures] for key, pictures in sections.items()}
    return {key: [each for each in pictures if each.svg or each.expected] for key, pictures in drawn.items()}


def _draw(picture: Picture[T], facts: T, plots: Path | None) -> Picture[T]:
    chart = picture.draw(facts)
    if chart is None:
        if plots is not None:
            (plots / f"{picture.key}.png").unlink(missing_ok=True)
        return picture
    drawn = replace(picture, svg=chart.svg(picture.key), tips=chart.tips())
    if plots is not None:
        # A PNG is shown alone, so it carries the title that the page puts into the caption.
        chart.figure.suptitle(picture.title, fontsize=TEXT + 3, x=0.02, ha="left")
        png(chart.figure, plots / f"{picture.key}.png")
    return drawn


def png(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", facecolor=LIGHT["card"], metadata={"Software": None})


class Chart:
    """A figure of one or several pairs of axes, with a light grid on y in the first.

    Args:
        xlabel: name of the x axis.
        height: in points.
        shape: rows and columns of axes.
    """

    def __init__(self, xlabel: str = "", height: float = HEIGHT, shape: tuple[int, int] = (1, 1)) -> None:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        self._curves: list[tuple[str, str, Points]] = []
        self.figure = Figure(figsize=(WIDTH / 72, height / 72))
        self.axes = self.figure.subplots(*shape, squeeze=False).ravel().tolist()
        self.ax = self.axes[0]
        self.ax.grid(axis="y")
        self.ax.yaxis.set_major_locator(MaxNLocator(5))
        self.ax.set_xlabel(xlabel)

    def tip(self, name: str, colour: str, points: Points) -> None:
        """Add a curve to the tooltip: (x, y, headline, value as text) for each point."""
        self._curves.append((name, colour, evenly(points, _TIPS)))

    def tips(self) -> list[dict[str, Any]]:
        """The curves of the tooltip in the coordinates of the SVG; call it after `svg`, which lays the chart out."""
        found = []
        for name, colour, points in self._curves:
            pixels = self.ax.transData.transform(np.reshape([point[:2] for point in points], (-1, 2)))
            pixels = np.round(np.abs(pixels - (0, self.figure.bbox.height)), 1)
            shown = [
                [x, y, *point[2:]]
                for (x, y), point in zip(pixels.tolist(), points, strict=True)
                if np.isfinite([x, y]).all()
            ]
            if shown:
                found.append({"name": name, "colour": colour, "points": shown})
        return found

    def level(self, y: float, text: str) -> None:
        """A dashed horizontal line with its meaning written above it."""
        self.ax.axhline(y, color=LIGHT["muted"], linewidth=0.9, linestyle="--", zorder=1)
        self.ax.annotate(
            text, (1, y), (-2, 4), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
            fontsize=TEXT - 1, color=LIGHT["muted"], bbox={"facecolor": LIGHT["card"], "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip

    def log_y(self) -> None:
        """A logarithmic y axis with readable ticks for the limits that it has now."""
        self.ax.set_yscale("log")
        log_ticks(self.ax.yaxis, *self.ax.get_ylim())

    def log_y_if_needed(self, values: Any) -> None:
        """A logarithmic y axis if the largest of the values would hide all others."""
        known = np.asarray(values)[np.isfinite(values)]
        if len(known) and known.min() > 0 and known.max() > 30 * np.median(known):
            self.log_y()

    def zero_line(self) -> None:
        self.ax.axhline(0, color=LIGHT["mark"], linewidth=0.9, zorder=1)

    def colour_bar(self, image: Any, fraction: float, **options: Any) -> Axis:
        """Add a colour scale above the axes; returns its axis."""
        bar = self.figure.colorbar(
            image, ax=self.axes, location="top", aspect=40, fraction=fraction, anchor=(0.0, 0.5), **options
        )
        bar.outline.set_visible(False)
        bar.solids.set_rasterized(True)  # type: ignore[union-attr]
        bar.ax.tick_params(labelsize=TEXT - 1, pad=3)
        return bar.ax.xaxis

    def legend(self) -> None:
        """A legend above the axes, in as many columns as fit."""
        labels = self.ax.get_legend_handles_labels()[1]
        if labels:
            # 4 letters for the handle and the space between columns.
            columns = _columns([LETTER * len(label) + 4 for label in labels], (WIDTH - 40) / TEXT)
            self.ax.legend(bbox_to_anchor=(-0.01, 1.0), ncols=columns)

    def svg(self, key: str) -> Markup:
        """The figure as a part of an HTML page: without prologue and metadata, with unique ids and the page's colours."""
        buffer = io.StringIO()
        self.figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        # HTML knows the namespaces of SVG; their addresses would look like references to the network.
        text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
        # matplotlib gives the parts of each picture the same ids.
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{key}-", text)
        for name, colour in LIGHT.items():
            text = text.replace(colour, f"var(--{name})")
        # Paths make up most of the file, with more digits than a screen has pixels.
        return Markup(re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text))


def evenly(items: Sequence[Any], most: int) -> Sequence[Any]:
    """At most `most` items, evenly spread, with the first and the last.

    >>> evenly("abcdefg", 3), evenly("ab", 3)
    (['a', 'd', 'g'], 'ab')
    """
    return items if len(items) <= most else [items[round(i)] for i in np.linspace(0, len(items) - 1, most)]


def colour_map(colours: Sequence[str]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("report", colours)


def count_ticks(axis: Axis) -> None:
    """Ticks of an axis that counts: 250, 1.5k, 2M."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(lambda value, _: compact(value))


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Ticks of a logarithmic axis: 0.01, 0.1, 1 instead of powers of ten, and more of them on a short axis."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    subs = (1.0, 2.0, 5.0) if high / low < 60 else (1.0, 3.0) if high / low < 3000 else (1.0,)
    axis.set_major_locator(MaxNLocator(4) if high / low < 4 else LogLocator(subs=subs, numticks=8))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: compact(value))


def _columns(widths: list[float], room: float) -> int:
    """The most columns that fit, each as wide as its widest entry; matplotlib fills them one after another."""
    for columns in range(len(widths), 1, -1):
        rows, more = divmod(len(widths), columns)
        ends = [i * rows + min(i, more) for i in range(columns + 1)]
        if sum(max(widths[begin:end]) for begin, end in pairwise(ends)) <= room:
            return columns
    return 1
