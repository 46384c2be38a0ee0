"""Rows with several columns, from files of any format that has columns, a hub dataset, or a built-in one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import formats
from bellwether.trainer.data.formats import delimited, json_rows, parquet, values
from bellwether.trainer.data.formats.opening import text_lines
from bellwether.trainer.data.summary import SourceSummary
from bellwether.trainer.data.text_sources import TextSource

if TYPE_CHECKING:
    from bellwether.trainer.data.tokenized import TokenizedData

Row = tuple[str, dict[str, Any]]  # the place of a row, and its values by column

_BATCH = 1000


def read(
    config: TokenizedData,
    source: TextSource,
    columns: Sequence[str],
    summary: SourceSummary,
    optional: Sequence[str] = (),
) -> Iterator[Row]:
    """The rows, with the columns of these names. A row may lack some of them, but not all rows.

    Args:
        optional: columns that a file may lack.

    Raises:
        ConfigError: if a file cannot be read, has no columns, or lacks one.
    """
    if source.rows is not None:
        yield from _of_dataset(source.rows(), columns, source.key, optional)
        return
    options = formats.Options(columns[0], config.encoding)
    for file, form in source.files:
        try:
            yield from _of_file(file, form.name, options, columns, config, summary, optional)
        except formats.NoColumn as error:
            column = next((c for c in columns if c not in map(str, error.args[2])), columns[0])
            raise ConfigError(
                f"data.{config.key_of(column)}", column, f"{file} {error.problem}", error.advice
            ) from error
        except formats.Unreadable as error:
            raise source.unreadable(error) from error


def class_names(source: TextSource, column: str) -> list[str] | None:
    """The names that a file or dataset gives to the numbers in a column (`datasets.ClassLabel`), or None.

    Raises:
        ConfigError: if a parquet file cannot be read.
    """
    if source.rows is not None:
        return _names_in(source.rows().features, column)
    if not source.files or source.files[0][1].name != "parquet":
        return None
    from datasets import Features

    try:
        with parquet.opened(source.files[0][0]) as table:
            return _names_in(Features.from_arrow_schema(table.schema_arrow), column)
    except formats.Unreadable as error:
        raise source.unreadable(error) from error


def _names_in(features: Any, column: str) -> list[str] | None:
    """The names of a `ClassLabel`, or of a list of them."""
    feature = features.get(column)
    return getattr(getattr(feature, "feature", feature), "names", None)


def _of_file(
    file: Path,
    form: str,
    options: formats.Options,
    columns: Sequence[str],
    config: TokenizedData,
    summary: SourceSummary,
    optional: Sequence[str],
) -> Iterator[Row]:
    if not file.stat().st_size:
        summary.note("empty files", "left out", str(file))
    elif form == "csv":
        yield from delimited.rows(file, options, summary, columns, config.column_names, optional)
    elif form == "json":
        yield from _of_json(file, options, columns, summary, optional)
    elif form == "parquet":
        yield from _of_parquet(file, columns, optional)
    elif form == "text" and config.reads_words:
        yield from _of_words(file, options, columns, summary)
    else:
        raise formats.Unreadable(file, "has no columns", "write the rows to a .csv, .tsv, .jsonl or .parquet file")


def _of_json(
    file: Path, options: formats.Options, columns: Sequence[str], summary: SourceSummary, optional: Sequence[str]
) -> Iterator[Row]:
    seen: set[str] = set()
    known: list[Any] = []
    for where, row in json_rows.rows(file, options, summary):
        if not isinstance(row, dict):
            summary.unreadable(f"{where}: holds {type(row).__name__}, not an object")
            continue
        known = known or list(row)
        found = {column: values.find(row, column) for column in (*columns, *optional)}
        seen |= {column for column, value in found.items() if value is not values.MISSING}
        yield where, {column: value for column, value in found.items() if value is not values.MISSING}
    if missing := [column for column in columns if column not in seen]:
        raise formats.NoColumn(file, f"has no column {missing[0]!r}", known)


def _of_parquet(file: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    import pyarrow

    with parquet.opened(file) as table:
        names = table.schema_arrow.names
        for column in columns:
            if names.count(column) != 1:
                raise formats.NoColumn(
                    file, f"has no column {column!r}" if column not in names else "has it twice", names
                )
        columns = [*columns, *(column for column in optional if names.count(column) == 1)]
        row = 0
        try:
            for batch in table.iter_batches(batch_size=_BATCH, columns=columns):
                for each in batch.to_pylist():
                    row += 1
                    yield f"{file}, row {row}", each
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise formats.Unreadable(file, f"after row {row}: {error}") from error


def _of_words(file: Path, options: formats.Options, columns: Sequence[str], summary: SourceSummary) -> Iterator[Row]:
    """A word on each line, its label in the last column, and a blank line between sentences, as in CoNLL-2003."""
    words: list[list[str]] = []
    begin = 1
    for number, line in text_lines(file, options, summary):
        values = split_line(line)
        if values and values[0] == "-DOCSTART-":
            summary.note("lines of -DOCSTART-", "left out", f"{file}, line {number}")
        elif len(values) == 1 and len(columns) > 1:
            summary.unreadable(f"{file}, line {number}: a word without a label")
        elif values:
            begin = begin if words else number
            words.append(values)
        elif words:
            yield f"{file}, line {begin}", dict(zip(columns, _words_and_labels(words), strict=False))
            words = []
    if words:
        yield f"{file}, line {begin}", dict(zip(columns, _words_and_labels(words), strict=False))


def split_line(line: str) -> list[str]:
    """The columns of a line: between tabs where it has some, else between spaces. Other white space, such as a no-break space, is part of a word.

    >>> split_line("New\\u00a0York  B-LOC "), split_line("10 000\\tO"), split_line("  ")
    (['New\\xa0York', 'B-LOC'], ['10 000', 'O'], [])
    """
    if not line.strip():
        return []
    return [value for part in line.split("\t" if "\t" in line else " ") if (value := part.strip(" "))]


def _words_and_labels(lines: list[list[str]]) -> tuple[list[str], list[str]]:
    return [values[0] for values in lines], [values[-1] for values in lines]


def _of_dataset(rows: Any, columns: Sequence[str], key: str, optional: Sequence[str]) -> Iterator[Row]:
    if missing := [column for column in columns if column not in rows.column_names]:
        raise ConfigError(key, missing[0], "no such column", f"it has: {', '.join(rows.column_names)}")
    chosen = [*columns, *(column for column in optional if column in rows.column_names)]
    for number, row in enumerate(rows.select_columns(chosen), 1):
        yield f"row {number}", row
