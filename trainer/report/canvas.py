"""matplotlib as the report uses it: one look, SVG that takes its colours from the page, PNG files.

Pictures are drawn in the colours of a light page. In the SVG each colour becomes a CSS variable of the page,
so that a dark page shows the same picture in colours that suit it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bellwether.trainer.report.facts import Facts, compact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

#: CSS variable -> colour on a light page. Each value once: it is also what is looked for in the SVG.
LIGHT = {
    "card": "#ffffff",
    "ink": "#22262b",
    "muted": "#6a717a",
    "grid": "#e7e4de",
    "mark": "#a9a59c",
    "blue": "#2f6194",
    "orange": "#c8552b",
    "green": "#3f7d5a",
    "plum": "#7d5490",
    "gold": "#a87f12",
    "teal": "#1f8a94",
    "bad": "#b3261e",
}

#: The same on a dark page.
DARK = {
    "card": "#1c1f23",
    "ink": "#e9e6df",
    "muted": "#9ba1a8",
    "grid": "#2e3237",
    "mark": "#62676d",
    "blue": "#82b4e3",
    "orange": "#f08f68",
    "green": "#7fc29b",
    "plum": "#c39ad6",
    "gold": "#e3bd5c",
    "teal": "#6cc7cf",
    "bad": "#ff8a80",
}


@dataclass(frozen=True)
class Size:
    """A picture's size and its letters', in points of the SVG: pixels of the page at natural size."""

    width: float
    height: float
    text: float
    titled: bool = False  #: a PNG stands alone and carries its title; on the page the caption does

    @property
    def narrow(self) -> bool:
        return self.width < 600


T = TypeVar("T")  #: what a report is of: the facts of a run, or those of a sweep


@dataclass(frozen=True)
class Picture(Generic[T]):
    """One picture of the report. `draw` gives None where the facts have nothing to show."""

    key: str
    title: str
    note: str
    draw: Callable[[T, Size], Figure | None]
    wide: bool = False


@dataclass(frozen=True)
class Drawn:
    """A picture on the page: its SVG for a desk, and one for a phone where it is wide; None: nothing to show."""

    title: str
    note: str
    desk: str | None
    phone: str | None
    wide: bool


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings for the report, whatever the user's own are."""
    import matplotlib

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "bellwether",
        "font.family": "DejaVu Sans",
        "path.simplify": True,
        "axes.edgecolor": LIGHT["grid"],
        "axes.labelcolor": LIGHT["muted"],
        "text.color": LIGHT["ink"],
        "xtick.color": LIGHT["muted"],
        "ytick.color": LIGHT["muted"],
        "text.parse_math": False,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def sheet(size: Size, title: str) -> Figure:
    """An empty figure of a size, with its title where it stands alone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size.width / 72, size.height / 72), dpi=72)
    # Letters on the page are the reader's, a little narrower or wider than those measured here: leave some
    # air.
    pad = 0.15 if size.titled else 0.05
    figure.set_layout_engine("constrained", w_pad=pad, h_pad=pad)
    figure.patch.set_alpha(0)
    if size.titled:
        figure.suptitle(title, fontsize=size.text + 3, x=0.02, ha="left", color=LIGHT["ink"])
    return figure


def plain(ax: Axes, size: Size, xlabel: str) -> None:
    """Axes without a frame: a light grid on y, and a name for x."""
    from matplotlib.ticker import MaxNLocator

    ax.patch.set_alpha(0)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.grid(axis="y", color=LIGHT["grid"], linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelsize=size.text, pad=5)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.margins(y=0.07)
    ax.set_xlabel(xlabel, fontsize=size.text, loc="right", labelpad=2)


def counted(axis: Axis, size: Size) -> None:
    """Ticks of an axis of samples: 250, 1.5k, 2M."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(5 if size.narrow else 8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))


def axes(facts: Facts, size: Size, title: str) -> tuple[Figure, Axes]:
    """A figure with one set of axes: samples on x, a light grid on y."""
    figure = sheet(size, title)
    ax = figure.add_subplot()
    plain(ax, size, "samples")
    counted(ax.xaxis, size)
    # One x axis for all pictures, so that an event is found at the same place in each.
    ax.set_xlim(-0.01 * facts.reach, 1.01 * facts.reach or 1.0)
    return figure, ax


def marks(ax: Axes, facts: Facts, size: Size) -> None:
    """Thin lines where a phase begins, dotted ones where the run was started again."""
    if facts.boundaries:
        # A strip above the curves for the phases' names.
        scale = ax.yaxis.get_transform()
        low, high = scale.transform(ax.get_ylim())
        ax.set_ylim(top=float(scale.inverted().transform([low + (high - low) * 1.08])[0]))
    for samples, label in facts.boundaries:
        ax.axvline(samples, color=LIGHT["mark"], linewidth=0.9, zorder=1)
        ax.annotate(
            label, (samples, 1), (4, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
            va="top", fontsize=size.text - 1, color=LIGHT["muted"],
        )  # fmt: skip
    for index, start in enumerate(facts.history.restarts):
        ax.axvline(
            float(start.get("samples", 0)), color=LIGHT["mark"], linewidth=1.1, linestyle=(0, (1, 2.5)),
            zorder=1, label="restart" if index == 0 else None,
        )  # fmt: skip


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Ticks of a logarithmic axis: 0.01, 0.1, 1 and not powers of ten, more of them on a short one."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    subs = (1.0, 2.0, 5.0) if high / low < 60 else (1.0, 3.0) if high / low < 3000 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))


def legend(ax: Axes, size: Size) -> None:
    """Above the axes, where it covers nothing: in one row, or in as many as the width asks for."""
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        columns = _columns(
            [0.62 * len(label) + (4.2 if size.narrow else 3.3) for label in labels], (size.width - 50) / size.text
        )
        ax.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns, frameon=False,
            fontsize=size.text, labelcolor=LIGHT["muted"], handlelength=1.3, columnspacing=2.2 if size.narrow else 1.3,
            handletextpad=0.5, borderpad=0.2, borderaxespad=0.1,
        )  # fmt: skip


def _columns(widths: list[float], room: float) -> int:
    """As many columns as fit, each as wide as its widest entry; matplotlib fills one after another, the first ones more."""
    for columns in range(len(widths), 1, -1):
        rows, more = divmod(len(widths), columns)
        ends = [i * rows + min(i, more) for i in range(columns + 1)]
        if sum(max(widths[begin:end]) for begin, end in pairwise(ends)) <= room:
            return columns
    return 1


def draw(picture: Picture[T], facts: T, plots: Path | None) -> Drawn:
    """The picture for a desk and, where it is wide there, for a phone; as PNG in `plots` too, unless that is None."""
    desk, phone = Size(1000, 330, 11.5), Size(420, 270, 11.0)
    texts: list[str] = []
    if plots is not None:
        path = plots / f"{picture.key}.png"
        alone = picture.draw(facts, Size(760, 400, 11.0, titled=True))
        if alone is None:
            path.unlink(missing_ok=True)
        else:
            png(alone, path)
    for index, size in enumerate((desk, phone) if picture.wide else (phone,)):
        figure = picture.draw(facts, size)
        if figure is None:
            return Drawn(picture.title, picture.note, None, None, picture.wide)
        texts.append(svg(figure, f"{picture.key}-{index}"))
    return Drawn(picture.title, picture.note, texts[0], texts[1] if picture.wide else None, picture.wide)


def svg(figure: Figure, key: str) -> str:
    """The figure as a part of an HTML page: no prologue or metadata, ids of its own, the page's colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # HTML knows the namespaces of SVG itself; their addresses would look like references to the network.
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", text, count=1)
    # Several pictures share a page, and matplotlib names the parts of each alike.
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{key}-", text)
    for name, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{name})")
    # Paths make up most of the file, with more digits than a screen has dots.
    return re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)


def png(figure: Figure, path: Path) -> None:
    figure.patch.set_alpha(1)
    figure.savefig(path, format="png", dpi=150, metadata={"Software": None})
