"""The page of any report: Jinja2 templates with autoescaping, in one self-contained file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bellwether.trainer.report import facts
from bellwether.trainer.report.chart import PALETTE

TEMPLATES = Path(__file__).with_name("templates")
_PAGE = ("#f7f5f1", "#131517")  # the colour around the cards, on a light and on a dark page
_TILES = 5  # at most, in a row

#: Label, CSS class ("n" for numbers, "name", "note", "path", "runs") and cells, as a function of the row.
Column = tuple[str, str, Callable[..., str]]
Tile = tuple[str, str, str, str]  #: label, value, unit, the line below


@dataclass(frozen=True)
class Table:
    """A table of text; a cell that is `Markup` is HTML already, as a link."""

    columns: Sequence[Column]
    rows: Sequence[Any]  #: what each row is about
    kind: str = ""  #: CSS class of the whole


def render(template: str, folder: Path = TEMPLATES, **values: Any) -> str:
    """Fill in a template of a folder, which may use those of this one."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    environment.filters |= {"count": facts.count, "whole": facts.whole, "columns": columns}
    return environment.get_template(template).render(palette={**PALETTE, "page": _PAGE}, **values)


def columns(tiles: int) -> int:
    """The number of columns in which the rows of tiles are as even as they can be."""
    return math.ceil(tiles / max(1, math.ceil(tiles / _TILES)))
