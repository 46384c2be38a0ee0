"""File formats of text. A format is one module here: it reads the texts of a file, one per document, and is listed below.

A reader gets an open-ended stream, never a whole file, and records what it leaves out or converts in a `SourceSummary`. A row
that cannot be read is passed to `SourceSummary.unreadable`; a file that cannot be read raises `Unreadable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bellwether.trainer.data.formats import delimited, json_rows, parquet, plain, tar
from bellwether.trainer.data.formats.opening import COMPRESSION, NoColumn, Options, Unreadable
from bellwether.trainer.data.summary import SourceSummary

__all__ = ["FORMATS", "NoColumn", "Options", "TextFormat", "Unreadable", "known_suffixes", "of"]


@dataclass(frozen=True)
class TextFormat:
    """A file format.

    Attributes:
        name: in ``data.format``.
        suffixes: of its files, without that of a compression.
        read: the texts of a file; None for a row without one.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, Options, SourceSummary], Iterator[str | None]]


FORMATS = (
    TextFormat("text", (".txt", ".text"), plain.read),
    TextFormat("json", (".jsonl", ".ndjson", ".json"), json_rows.read),
    TextFormat("csv", (".csv", ".tsv"), delimited.read),
    TextFormat("parquet", (".parquet", ".pq"), parquet.read),
    TextFormat("webdataset", (".tar", ".tgz"), tar.read),
)


def known_suffixes() -> tuple[str, ...]:
    """The last suffixes of all files that can be read."""
    return (*(suffix for form in FORMATS for suffix in form.suffixes), *COMPRESSION)


def of(file: Path) -> TextFormat | None:
    """The format of a file by its name; None if it is not known."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSION:
        suffixes.pop()
    return next((form for form in FORMATS if suffixes and suffixes[-1] in form.suffixes), None)
