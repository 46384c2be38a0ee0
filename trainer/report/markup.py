"""What the page of any report is made of: the document, tiles, figures and tables. All text is escaped here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from bellwether.trainer.report.canvas import DARK, LIGHT, Drawn

_TILES = 5  # a row


class Html(str):
    """Text that is HTML already, as a link in a cell; any other text is escaped."""

    __slots__ = ()


def safe(text: str) -> str:
    return text if isinstance(text, Html) else escape(text)


def document(title: str, parts: Iterable[str]) -> str:
    """The whole file; parts that are empty are left out."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)} · Bellwether</title>\n<link rel="icon" href="data:,">\n<style>\n{_style()}</style>\n'
        "</head>\n<body>\n<main>\n" + "\n".join(part for part in parts if part) + "\n</main>\n</body>\n</html>\n"
    )


def _style() -> str:
    """The colours as CSS variables, which the pictures use too, and the look. Paper has the light ones."""
    light, dark = (
        "".join(f"--{name}: {colour}; " for name, colour in palette.items())
        for palette in ({**LIGHT, "page": "#f7f5f1"}, {**DARK, "page": "#131517"})
    )
    return (
        f":root {{ color-scheme: light dark; {light}}}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n"
        + Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    )


def head(kind: str, title: str, state: tuple[str, str], about: Sequence[str], missing: Sequence[str]) -> str:
    """The top of a page.

    Args:
        kind: of report, as in "report of a run".
        title: name of what it is about.
        state: (text, CSS class) of the badge beside it.
        about: facts in a line.
        missing: sentences for the box below.
    """
    line = " · ".join(f"<span>{escape(part)}</span>" for part in about if part)
    box = "".join(f"<p>{safe(text)}</p>" for text in missing)
    return (
        f'<header>\n<p class="brand">Bellwether · {escape(kind)}</p>\n'
        f'<div class="head"><h1>{escape(title)}</h1>'
        f'<span class="state {escape(state[1], quote=True)}">{escape(state[0])}</span></div>\n'
        f'<p class="about">{line}</p>\n</header>' + (f'\n<div class="missing">{box}</div>' if box else "")
    )


def tiles(headlines: Sequence[tuple[str, str, str, str]]) -> str:
    """The headlines, what a reader looks for first: (label, value, unit, the line below); rows as even as they can be."""
    rows = math.ceil(len(headlines) / _TILES)
    columns = math.ceil(len(headlines) / max(1, rows))
    cells = "".join(
        f"<div><dt>{escape(label)}</dt>"
        f'<dd class="value">{safe(value)}{f" <small>{escape(unit)}</small>" if unit else ""}</dd>'
        f'<dd class="sub">{safe(below)}</dd></div>\n'
        for label, value, unit, below in headlines
    )
    return f'<dl class="tiles" style="--columns: {columns}">\n{cells}</dl>'


def figures(drawn: Sequence[Drawn]) -> str:
    """Pictures in order: wide ones over the whole width, others two a row."""
    parts: list[str] = []
    pair: list[str] = []
    for picture in drawn:
        caption = f"<figcaption><b>{escape(picture.title)}</b> <span>{escape(picture.note)}</span></figcaption>"
        if picture.desk is None:
            inner = '<p class="absent">Nothing logged.</p>'
        else:
            named = f'<svg role="img" aria-label="{escape(picture.title, quote=True)}"'
            inner = picture.desk.replace("<svg", named, 1)
            if picture.phone is not None:
                phone = picture.phone.replace("<svg", named, 1)
                inner = f'<div class="wide">{inner}</div><div class="narrow">{phone}</div>'
        figure = f"<figure>{caption}{inner}</figure>"
        if picture.wide:
            parts += [_pair(pair), figure]
            pair = []
        else:
            pair.append(figure)
    return "\n".join(part for part in [*parts, _pair(pair)] if part)


def _pair(pair: list[str]) -> str:
    return f'<div class="pair">{"".join(pair)}</div>' if pair else ""


def table(head: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> str:
    """`head`: (label, CSS class) of each column."""
    top = "".join(f'<th class="{kind}">{escape(label)}</th>' for label, kind in head)
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{kind}">{safe(cell)}</td>' for (_, kind), cell in zip(head, row, strict=True))
        + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>'


def folded(title: str, note: str, inner: str) -> str:
    """What only some readers look at, behind a line to click on."""
    return f"<details><summary>{escape(title)} <span>{escape(note)}</span></summary>{inner}</details>"
