"""Tables of text: comma-separated (``.csv``) and tab-separated (``.tsv``) values. The first row names the columns."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bellwether.trainer.data.formats.opening import COMPRESSION, NoColumn, Options, text_lines
from bellwether.trainer.data.summary import SourceSummary

_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_LOOK = 100_000  # lines by which it is decided whether a quote has a meaning


def read(file: Path, options: Options, summary: SourceSummary) -> Iterator[str | None]:
    csv.field_size_limit(2**31 - 1)
    suffixes = [s.lower() for s in file.suffixes if s.lower() not in COMPRESSION]
    usual = "\t" if suffixes[-1:] == [".tsv"] else ","
    first = next((line for _, line in text_lines(file, options, SourceSummary()) if line.strip()), None)
    if first is None:
        return
    delimiter = _delimiter(first, usual, options.column)
    if delimiter != usual:
        summary.note(f"files with {_DELIMITERS[delimiter]} between their values", "read as such", str(file))
    names = [name.strip() for name in next(csv.reader([first], delimiter=delimiter))]
    if (count := names.count(options.column)) != 1:
        raise NoColumn(file, f"has {count} columns of this name" if count else "has no such column", names)
    if delimiter == "\t" and not _uses_quotes(file, options, len(names)):
        yield from _unquoted(file, options, summary, names)
        return
    yield from _quoted(file, options, summary, names, delimiter)


def _delimiter(first: str, usual: str, column: str) -> str:
    """The usual delimiter, or the one by which the header has the column."""
    for delimiter in (usual, *_DELIMITERS):
        if column in [name.strip() for name in next(csv.reader([first], delimiter=delimiter))]:
            return delimiter
    return usual


def _uses_quotes(file: Path, options: Options, columns: int) -> bool:
    """Whether values between tabs are quoted: not if each line has all its values as it is.

    A lone quote in an unquoted file would otherwise join all lines up to the next one.
    """
    lines = (line for _, line in text_lines(file, options, SourceSummary()) if line.strip())
    return any(line.count("\t") != columns - 1 for line in itertools.islice(lines, _LOOK))


def _unquoted(file: Path, options: Options, summary: SourceSummary, names: list[str]) -> Iterator[str | None]:
    index = names.index(options.column)
    lines = ((number, line) for number, line in text_lines(file, options, summary) if line.strip())
    for number, line in itertools.islice(lines, 1, None):
        values = line.split("\t")
        if len(values) != len(names):
            summary.unreadable(f"{file}, line {number}: {len(values)} values, the header has {len(names)}")
            continue
        value = values[index]
        inner = value[1:-1].replace('""', "")
        quoted = len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inner
        yield value[1:-1].replace('""', '"') if quoted else value


def _quoted(
    file: Path, options: Options, summary: SourceSummary, names: list[str], delimiter: str
) -> Iterator[str | None]:
    index, reached = names.index(options.column), 0

    def lines() -> Iterator[str]:
        nonlocal reached
        for number, line in text_lines(file, options, summary):
            reached = number
            yield line + "\n"

    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    wrong: Counter[str] = Counter()
    is_header, begin = True, 1
    while True:
        begin = reached + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            end = f" to {reached}" if reached > begin else ""
            summary.unreadable(f"{file}, line {begin}{end}: {error}")
            wrong["error"] += 1
            continue
        if row is None:
            return
        if not row or (len(row) == 1 and not row[0].strip() and len(names) > 1):
            continue  # a blank line
        if is_header:
            is_header = False
        elif len(row) != len(names):
            summary.unreadable(f"{file}, line {begin}: {len(row)} values, the header has {len(names)}")
        else:
            yield row[index]
