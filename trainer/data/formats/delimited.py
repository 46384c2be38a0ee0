"""Tables of text: comma-separated (``.csv``) and tab-separated (``.tsv``) values. The first row names the columns."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from bellwether.trainer.data.formats.opening import COMPRESSION, NoColumn, Options, Unreadable, text_lines
from bellwether.trainer.data.summary import SourceSummary

_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_LOOK = 100_000  # lines by which it is decided whether a quote has a meaning


def read(file: Path, options: Options, summary: SourceSummary) -> Iterator[str | None]:
    for _, row in rows(file, options, summary, [options.column]):
        yield row[options.column]


def rows(
    file: Path,
    options: Options,
    summary: SourceSummary,
    columns: Sequence[str],
    header: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> Iterator[tuple[str, dict[str, str]]]:
    """The values of some columns of each row, with the place of the row.

    Args:
        header: names of the columns, where the file does not begin with them.
        optional: columns that the file may lack.

    Raises:
        NoColumn: if the file lacks a column, or has it twice.
    """
    csv.field_size_limit(2**31 - 1)
    suffixes = [s.lower() for s in file.suffixes if s.lower() not in COMPRESSION]
    usual = "\t" if suffixes[-1:] == [".tsv"] else ","
    first = next((line for _, line in text_lines(file, options, SourceSummary()) if line.strip()), None)
    if first is None:
        return
    try:
        delimiter = usual if header else _delimiter(first, usual, columns[0])
    except csv.Error as error:
        raise Unreadable(file, f"its first row is no row of a table: {error}") from error
    if delimiter != usual:
        summary.note(f"files with {_DELIMITERS[delimiter]} between their values", "read as such", str(file))
    names = list(header) or [name.strip() for name in next(csv.reader([first], delimiter=delimiter))]
    for column in columns:
        if (count := names.count(column)) != 1:
            raise NoColumn(file, f"has {count} columns of this name" if count else "has no such column", names)
    known = [*columns, *(column for column in optional if names.count(column) == 1)]
    chosen = {column: names.index(column) for column in known}
    is_quoted = delimiter != "\t" or _uses_quotes(file, options, len(names))
    table = _quoted(file, options, summary, names, delimiter) if is_quoted else _unquoted(file, options, summary, names)
    for number, values in itertools.islice(table, 0 if header else 1, None):
        where = f"{file}, line {number}"
        if not header and values[chosen[columns[0]]].strip() == columns[0] and [v.strip() for v in values] == names:
            summary.note("rows that repeat the header", "left out", where)  # of files that were joined
        else:
            yield where, {column: values[index] for column, index in chosen.items()}


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


def _unquoted(
    file: Path, options: Options, summary: SourceSummary, names: list[str]
) -> Iterator[tuple[int, list[str]]]:
    """The values of each line, the header's too, with the number of the line."""
    for number, line in text_lines(file, options, summary):
        if not line.strip():
            continue
        values = line.split("\t")
        if len(values) != len(names):
            summary.unreadable(f"{file}, line {number}: {len(values)} values, the header has {len(names)}")
            continue
        yield number, [_without_quotes(value) for value in values]


def _without_quotes(value: str) -> str:
    inner = value[1:-1].replace('""', "")
    quoted = len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inner
    return value[1:-1].replace('""', '"') if quoted else value


def _quoted(
    file: Path, options: Options, summary: SourceSummary, names: list[str], delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """As `_unquoted`, where quotes have a meaning; the number is that of a row's first line."""
    reached = 0

    def lines() -> Iterator[str]:
        nonlocal reached
        for number, line in text_lines(file, options, summary):
            reached = number
            yield line + "\n"

    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        begin = reached + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            end = f" to {reached}" if reached > begin else ""
            summary.unreadable(f"{file}, line {begin}{end}: {error}")
            continue
        if row is None:
            return
        if not row or (len(row) == 1 and not row[0].strip() and len(names) > 1):
            continue  # a blank line
        if len(row) != len(names):
            summary.unreadable(f"{file}, line {begin}: {len(row)} values, the header has {len(names)}")
        else:
            yield begin, row
