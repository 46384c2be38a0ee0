"""JSON: an object per line (``.jsonl``), or a file with a list of objects, an object of columns, or one object."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bellwether.trainer.data.formats import values
from bellwether.trainer.data.formats.opening import (
    COMPRESSION,
    NoColumn,
    Options,
    Unreadable,
    encoding_of,
    open_bytes,
    text_lines,
)
from bellwether.trainer.data.summary import SourceSummary

_BLOCK = 1 << 20  # characters


def read(file: Path, options: Options, summary: SourceSummary) -> Iterator[str | None]:
    return texts(rows(file, options, summary), options.column, summary, file)


def rows(file: Path, options: Options, summary: SourceSummary) -> Iterator[tuple[str, Any]]:
    """The rows of a file as they were parsed, each with the place where it is."""
    suffixes = [s.lower() for s in file.suffixes if s.lower() not in COMPRESSION]
    return _objects(file, options, summary) if suffixes[-1:] == [".json"] else _lines(file, options, summary)


def texts(rows: Iterator[tuple[str, Any]], column: str, summary: SourceSummary, file: Path) -> Iterator[str | None]:
    """The texts of rows that have been parsed, each with the place where it is.

    Raises:
        NoColumn: if no row has the column.
    """
    without, some = 0, False
    known: list[Any] = []
    for where, row in rows:
        value = values.find(row, column)
        if not isinstance(row, dict):
            summary.unreadable(f"{where}: holds {type(row).__name__}, not an object")
        elif value is values.MISSING:
            without += 1
            known = known or list(row)
            if not some and without > 100:
                break  # and refused below
            summary.rows += 1
            summary.note(f"rows without the column {column!r}", "left out", where)
        else:
            some = True
            yield from values.texts(value, where, summary)
    if without and not some:
        raise NoColumn(file, "has no such column", known)


def _lines(file: Path, options: Options, summary: SourceSummary) -> Iterator[tuple[str, Any]]:
    quoted = json.dumps(options.column)
    for number, line in text_lines(file, options, summary):
        where = f"{file}, line {number}"
        if not line.strip():
            summary.note("blank lines", "left out", where)
            continue
        row = _parsed(line, where, summary)
        if row is values.MISSING:
            continue
        if line.count(quoted) > 1 and _is_repeated(line, options.column):
            summary.note(f"objects that have {options.column!r} twice", "the last one is taken", where)
        yield where, row


def _parsed(text: str, where: str, summary: SourceSummary) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        summary.unreadable(f"{where}: is not JSON: {error}")
        return values.MISSING


def _is_repeated(line: str, column: str) -> bool:
    found: list[Any] = json.loads(line, object_pairs_hook=list)
    return sum(pair[0] == column for pair in found if isinstance(pair, tuple)) > 1


def _objects(file: Path, options: Options, summary: SourceSummary) -> Iterator[tuple[str, Any]]:
    encoding = encoding_of(file, options.encoding, summary)
    with open_bytes(file) as stream:
        text = _Buffer(io.TextIOWrapper(stream, encoding))
        try:
            if text.skip() == "[":
                yield from _elements(file, text)
                return
            first = text.value()
            if text.skip() or not isinstance(first, dict):  # several objects, one after the other
                yield f"{file}, object 1", first
                number = 1
                while text.skip():
                    number += 1
                    yield f"{file}, object {number}", text.value()
                return
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
            raise Unreadable(file, f"is not JSON: {error}") from error
    yield from _single(file, first, options, summary)


def _elements(file: Path, text: _Buffer) -> Iterator[tuple[str, Any]]:
    """The elements of a list at the top."""
    text.position += 1
    number = 0
    while (character := text.skip()) != "]":
        if number:
            if character != ",":
                raise ValueError(f"element {number + 1}: expected , or ]" if character else "the file ends in its list")
            text.position += 1
            if not text.skip():
                raise ValueError("the file ends in its list")
        number += 1
        yield f"{file}, element {number}", text.value()
    text.position += 1
    if text.skip():
        raise ValueError("something follows its list")


def _single(file: Path, found: dict[str, Any], options: Options, summary: SourceSummary) -> Iterator[tuple[str, Any]]:
    """The rows of one object: itself, its columns, or the list in its only field that is a list of objects."""
    value = values.find(found, options.column)
    if isinstance(value, list):
        summary.note("JSON files of columns", "each element is a row", str(file))
        for number, each in enumerate(value, 1):
            yield f"{file}, element {number} of {options.column}", {options.column: each}
        return
    lists = [key for key, inner in found.items() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    if value is values.MISSING and len(lists) == 1:
        summary.note(f"JSON files with rows in the field {lists[0]!r}", "these are read", str(file))
        for number, each in enumerate(found[lists[0]], 1):
            yield f"{file}, element {number} of {lists[0]}", each
        return
    yield str(file), found


class _Buffer:
    """Parses JSON values one after the other, without the whole file in memory."""

    def __init__(self, stream: io.TextIOBase) -> None:
        self._stream, self._text, self.position, self._ended = stream, "", 0, False
        self._decoder = json.JSONDecoder()

    def skip(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self.position < len(self._text) and self._text[self.position] in " \t\r\n\ufeff":
                self.position += 1
            if self.position < len(self._text):
                return self._text[self.position]
            if not self._more():
                return ""

    def value(self) -> Any:
        """The next value."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self.position)
                if end < len(self._text) or self._ended:  # else a number may go on
                    self.position = end
                    return value
            except json.JSONDecodeError:
                if self._ended:
                    raise
            self._more()

    def _more(self) -> bool:
        rest = self._text[self.position :]
        block = self._stream.read(max(_BLOCK, len(rest)))  # twice as much each time: a value is scanned few times
        self._ended = not block
        self._text, self.position = rest + block, 0
        return bool(block)
