"""Parquet files: one column is read, row group by row group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bellwether.trainer.data.formats import values
from bellwether.trainer.data.formats.opening import NoColumn, Options, Unreadable, refuse_pointer
from bellwether.trainer.data.summary import SourceSummary


def _text_types(types: Any) -> tuple[Any, ...]:
    return (
        types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary, types.is_null,
    )  # fmt: skip


def opened(file: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile`, whose schema can be read.

    Raises:
        Unreadable: if the file is empty or damaged.
    """
    import pyarrow
    from pyarrow import parquet

    if not file.stat().st_size:
        raise Unreadable(file, "is empty")
    refuse_pointer(file)
    try:
        table = parquet.ParquetFile(file)
        table.schema_arrow.names  # noqa: B018  (a damaged schema fails only when it is read)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Unreadable(file, f"is no complete parquet file: {error}") from error
    return table


def read(file: Path, options: Options, summary: SourceSummary) -> Iterator[str | None]:
    import pyarrow
    from pyarrow import types

    column = options.column
    with opened(file) as table:
        schema, names = table.schema_arrow, table.schema_arrow.names
        outer = column if column in names else column.partition(".")[0]
        if (count := names.count(outer)) != 1:
            raise NoColumn(file, f"has {count} columns of this name" if count else "has no such column", names)
        kind = schema.field(outer).type
        inner = kind.value_type if types.is_dictionary(kind) else kind
        is_text = any(holds(inner) for holds in _text_types(types))
        if outer == column and not is_text:
            raise NoColumn(file, f"holds {kind} there, not text", names)
        if not table.metadata.num_rows:
            summary.note("files without rows", "left out", str(file))
        row = 0
        for group in range(table.num_row_groups):
            try:
                batches = table.iter_batches(batch_size=1000, row_groups=[group], columns=[outer])
                for batch in batches:
                    for value in batch.column(0).to_pylist():
                        row += 1
                        where = f"{file}, row {row}"
                        found = value if outer == column else values.find({outer: value}, column)
                        if found is values.MISSING:
                            summary.rows += 1
                            summary.note(f"rows without the column {column!r}", "left out", where)
                        else:
                            yield from values.texts(found, where, summary)
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                if isinstance(error, Unreadable) or (isinstance(error, OSError) and error.errno is not None):
                    raise
                raise Unreadable(file, f"row group {group}, after row {row}: {error}") from error
