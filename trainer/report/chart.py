"""Charts of the reports: one matplotlib look, SVG that takes its colours from the page, PNG files, points for tooltips.

Each chart is drawn once, at a size that a phone shows whole and a desk shows two in a row. It is drawn in the colours of a
light page; in the SVG each colour becomes a CSS variable, so that the same picture suits a dark page, a phone and paper.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
WIDTH, HEIGHT, TEXT = 410.0, 245.0, 11.0  #: of a chart and its letters, in points: pixels of the page at natural size
DASHED, DOTTED = (0, (5, 4)), (0, (1, 2.5))
_TIPS = 240  # points of a curve that the tooltip stops at: half a chart's width in pixels

T = TypeVar("T")  #: what a report is about: the facts of a run, or those of a sweep


@dataclass(frozen=True)
class Picture(Generic[T]):
    """One picture of a report. `draw` returns None if the facts have nothing to show."""

    key: str
    title: str
    note: str
    draw: Callable[[T], Chart | None]
    expected: bool = False  #: its absence is worth a note on the page


@dataclass(frozen=True)
class Drawn:
    """A picture on the page: its SVG, or None if there is nothing to show, and the curves of its tooltip."""

    picture: Picture[Any]
    svg: Markup | None = None
    tips: Sequence[dict[str, Any]] = field(default=())


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings for the reports, whatever the user's own are."""
    import matplotlib

    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "bellwether", "font.family": "DejaVu Sans", "text.parse_math": False,
        "path.simplify": True, "axes.edgecolor": LIGHT["grid"], "axes.labelcolor": LIGHT["muted"],
        "text.color": LIGHT["ink"], "xtick.color": LIGHT["muted"], "ytick.color": LIGHT["muted"],
    }  # fmt: skip
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def draw(picture: Picture[T], facts: T, plots: Path | None) -> Drawn:
    """Draw a picture once: as SVG for the page and, unless `plots` is None, as ``<plots>/<key>.png``."""
    path = None if plots is None else plots / f"{picture.key}.png"
    chart = picture.draw(facts)
    if chart is None:
        if path is not None:
            path.unlink(missing_ok=True)
        return Drawn(picture)
    drawn = Drawn(picture, chart.svg(picture.key), chart.tips())
    if path is not None:
        # A PNG is shown alone, so it carries the title that the page puts into the caption.
        chart.figure.suptitle(picture.title, fontsize=TEXT + 3, x=0.02, ha="left", color=LIGHT["ink"])
        png(chart.figure, path)
    return drawn


def png(figure: Figure, path: Path) -> None:
    figure.patch.set_alpha(1)
    figure.savefig(path, format="png", dpi=180, metadata={"Software": None})


class Chart:
    """A figure with one pair of axes, without a frame: a light grid on y, a name for x.

    Args:
        xlabel: name of the x axis.
        height: in points.
        subplots: False for a figure that the caller fills.
    """

    def __init__(self, xlabel: str = "", height: float = HEIGHT, *, subplots: bool = True) -> None:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        self._curves: list[tuple[str, str, Sequence[tuple[float, float, str, str]]]] = []
        self.figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        # The reader's fonts are a little wider or narrower than the one measured here: leave some room.
        self.figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        self.figure.patch.set_alpha(0)
        if not subplots:
            return
        self.ax = ax = self.figure.add_subplot()
        ax.patch.set_alpha(0)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.grid(axis="y", color=LIGHT["grid"], linewidth=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(length=0, labelsize=TEXT, pad=5)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.margins(y=0.07)
        ax.set_xlabel(xlabel, fontsize=TEXT, loc="right", labelpad=2)

    def tip(self, name: str, colour: str, points: Sequence[tuple[float, float, str, str]]) -> None:
        """Add a curve to the tooltip: (x, y, headline, value as text) for each point."""
        self._curves.append((name, colour, points))

    def tips(self) -> list[dict[str, Any]]:
        """The curves of the tooltip in the coordinates of the SVG; call it after `svg`, which lays the chart out."""
        found = []
        for name, colour, points in self._curves:
            if not points:
                continue
            picked = [points[i] for i in np.unique(np.linspace(0, len(points) - 1, _TIPS).astype(int))]
            pixels = self.ax.transData.transform([point[:2] for point in picked])
            pixels[:, 1] = self.figure.bbox.height - pixels[:, 1]
            shown = [
                [round(float(x), 1), round(float(y), 1), *point[2:]]
                for (x, y), point in zip(pixels, picked, strict=True)
                if np.isfinite([x, y]).all()
            ]
            found.append({"name": name, "colour": colour, "points": shown})
        return found

    def level(self, y: float, text: str) -> None:
        """A dashed horizontal line with its meaning written above it."""
        self.ax.axhline(y, color=LIGHT["muted"], linewidth=0.9, linestyle=DASHED, zorder=1)
        self.ax.annotate(
            text, (1, y), (-2, 4), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
            fontsize=TEXT - 1, color=LIGHT["muted"], bbox={"facecolor": LIGHT["card"], "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip

    def log_y(self) -> None:
        """A logarithmic y axis with readable ticks for the limits that it has now."""
        self.ax.set_yscale("log")
        log_ticks(self.ax.yaxis, *self.ax.get_ylim())

    def legend(self) -> None:
        """A legend above the axes, where it covers nothing, in as many columns as fit."""
        handles, labels = self.ax.get_legend_handles_labels()
        if handles:
            # A letter is about 0.62 of its height wide; 4 letters for the handle and the space between columns.
            columns = _columns([0.62 * len(label) + 4 for label in labels], (WIDTH - 40) / TEXT)
            self.ax.legend(
                handles, labels, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns, frameon=False,
                fontsize=TEXT, labelcolor=LIGHT["muted"], handlelength=1.3, columnspacing=1.8, handletextpad=0.5,
                borderpad=0.2, borderaxespad=0.1,
            )  # fmt: skip

    def svg(self, key: str) -> Markup:
        """The figure as a part of an HTML page: without prologue and metadata, with unique ids and the page's colours."""
        buffer = io.StringIO()
        self.figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        # HTML knows the namespaces of SVG; their addresses would look like references to the network.
        text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
        text = re.sub(
            r'(<svg\b[^>]*?) (?:height|width)="[^"]*"([^>]*?) (?:height|width)="[^"]*"', r"\1\2", text, count=1
        )
        # matplotlib gives the parts of each picture the same ids.
        text = re.sub(r'\bid="', f'id="{key}-', text)
        text = re.sub(r'(href="|url\()#', rf"\1#{key}-", text)
        for name, colour in LIGHT.items():
            text = text.replace(colour, f"var(--{name})")
        # Paths make up most of the file, with more digits than a screen has pixels.
        return Markup(re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text))


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
