"""The text in a value of a row, whatever its type, and the place of a column in nested rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from bellwether.trainer.data.summary import SourceSummary

MISSING = object()


def find(row: Any, column: str) -> Any:
    """The value of a column; ``a.b`` is the column b in the object of the column a. `MISSING` if there is none."""
    if not isinstance(row, dict):
        return MISSING
    if column in row:
        return row[column]
    outer, dot, inner = column.partition(".")
    return find(row[outer], inner) if dot and outer in row else MISSING


def texts(value: Any, where: str, summary: SourceSummary) -> Iterator[str | None]:
    """The text of a value: None for null, and nothing for a value without text, which is recorded as unreadable."""
    if isinstance(value, str) or value is None:
        yield value
    elif isinstance(value, float) and math.isnan(value):
        yield None  # how pandas writes a missing value
    elif isinstance(value, bool | int | float | Decimal):
        summary.note("numbers in the text column", "converted to text", where)
        yield str(value).lower() if isinstance(value, bool) else str(value)
    elif isinstance(value, bytes):
        try:
            yield value.decode("utf-8")
        except UnicodeDecodeError as error:
            summary.unreadable(f"{where}: {error}")
    else:
        what = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else type(value).__name__
        summary.unreadable(f"{where}: holds {what}, not text")
