"""The labels of labelled data: class names in a fixed order, or numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bellwether.trainer.config.errors import ConfigError

if TYPE_CHECKING:
    from bellwether.trainer.data.labelled_text import LabelledText


@dataclass(frozen=True)
class Classes:
    """Classes by name, in the order of their numbers.

    Attributes:
        order: where the column holds numbers of its own for the classes: the class of each of these numbers.
    """

    column: str
    names: list[str]
    order: list[int] | None = None

    @property
    def by_number(self) -> bool:
        return self.order is not None

    def numbers(self, values: Sequence[Any], key: str, first: int) -> npt.NDArray[np.int64]:
        """The number of each label's class.

        Args:
            key: where the rows come from, for messages.
            first: number of the first row.

        Raises:
            ConfigError: naming the first row whose label is missing or no class of the training data.
        """
        known: dict[Any, int] = {name: index for index, name in enumerate(self.names)}
        if self.order is not None:
            known = dict(enumerate(self.order))
        found = [known.get(label_name(value) if self.order is None else value, -1) for value in values]
        if -1 in found:
            row = found.index(-1)
            raise ConfigError(
                "data.label_column", self.column, *_fault(values[row], f"row {first + row + 1:,} of {key}", self.names)
            )
        return np.array(found, dtype=np.int64)


@dataclass(frozen=True)
class Numbers:
    """Numbers to predict."""

    column: str
    names: None = None

    def numbers(self, values: Sequence[Any], key: str, first: int) -> npt.NDArray[np.float32]:
        """The labels as float32.

        Raises:
            ConfigError: naming the first row whose label is missing or no finite number.
        """
        for row, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                problem = f"row {first + row + 1:,} of {key} holds {value!r}, not a number"
                raise ConfigError(
                    "data.label_column", self.column, problem, "correct the row, or write data.task: classification"
                )
        return np.array(values, dtype=np.float32)


def label_name(value: Any) -> str | None:
    """The name of a class, from a label as it was read; None where there is no label."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def classes_of(rows: Any, config: LabelledText, fewest: int = 2) -> Classes | Numbers:
    """The classes of the training rows, or that labels are numbers.

    Args:
        fewest: the smallest number of classes that is accepted.

    Classes are in the order that the file defines (`datasets.ClassLabel`), else in that of their numbers, else of their names.

    Raises:
        ConfigError: if there are fewer classes, or the labels of a classification are fractions.
    """
    column = config.label_column
    if config.task == "regression":
        return Numbers(column)
    feature = rows.features[column]
    if hasattr(feature, "names"):
        return Classes(column, list(feature.names), order=list(range(len(feature.names))))
    dtype = str(getattr(feature, "dtype", "list"))
    if dtype.startswith(("float", "double", "decimal")):
        problem, advice = "holds fractions, not classes", "write data.task: regression, or name another column"
        raise ConfigError("data.label_column", column, problem, advice)
    if not dtype.startswith(("string", "large_string", "int", "uint", "bool", "null")):
        raise ConfigError("data.label_column", column, f"holds {dtype}s, not one label a row", "name another column")
    values = {value for value in rows.unique(column) if value is not None}
    names = [str(label_name(value)) for value in sorted(values)]
    if len(names) < fewest:
        problem = f"has {'one class, ' + repr(names[0]) if names else 'no labels'}"
        raise ConfigError("data.label_column", column, problem, "name another column, or other data")
    return Classes(column, names)


def _fault(value: Any, where: str, names: Sequence[str]) -> tuple[str, str]:
    if label_name(value) is None or value == -1:
        return f"{where} has no label ({value!r})", "remove unlabelled rows, or name other data"
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return (
        f"{where} holds {value!r}, which is no class of the training data: {shown}",
        "correct the row, or name other data",
    )
