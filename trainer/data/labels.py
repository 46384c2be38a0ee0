"""The labels of labelled data: class names in a fixed order, or numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bellwether.trainer.config.errors import ConfigError

if TYPE_CHECKING:
    from bellwether.trainer.data.labelled_text import LabelledText
    from bellwether.trainer.data.labelled_tokens import LabelledTokens

_LARGEST = float(np.finfo(np.float32).max)  # a larger number would be infinite in float32


@dataclass(frozen=True)
class Classes:
    """Classes by name, in the order of their numbers.

    Attributes:
        order: where the column holds numbers of its own for the classes: the class of each of these numbers.
    """

    column: str
    names: list[str]
    order: list[int] | None = None

    def numbers(self, labels: Sequence[Any], places: Sequence[str]) -> npt.NDArray[np.int64]:
        """The number of each label's class.

        Raises:
            ConfigError: naming the place of the first label that is missing or no class of the training data.
        """
        known: dict[Any, int] = {name: index for index, name in enumerate(self.names)}
        if self.order is not None:
            known = dict(enumerate(self.order))
        found = [known.get(label_name(label) if self.order is None else label, -1) for label in labels]
        if -1 in found:
            row = found.index(-1)
            raise ConfigError("data.label_column", self.column, *_fault(labels[row], places[row], self.names))
        return np.array(found, dtype=np.int64)


@dataclass(frozen=True)
class Numbers:
    """Numbers to predict."""

    column: str
    names: None = None

    def numbers(self, labels: Sequence[Any], places: Sequence[str]) -> npt.NDArray[np.float32]:
        """The labels as float32.

        Raises:
            ConfigError: naming the place of the first label that is missing or no finite number.
        """
        found = [_number(label) for label in labels]
        if None in found:
            row = found.index(None)
            problem = f"{places[row]} holds {labels[row]!r}, not a number"
            raise ConfigError(
                "data.label_column", self.column, problem, "correct the row, or write data.task: classification"
            )
        return np.array(found, dtype=np.float32)


def label_name(label: Any) -> str | None:
    """The name of a class, from a label as it was read; None where there is no label."""
    if label is None or label == "" or (isinstance(label, float) and math.isnan(label)):
        return None
    return str(label).lower() if isinstance(label, bool) else str(label)


def classes_of(
    labels: Sequence[Any], named: Sequence[str] | None, config: LabelledText | LabelledTokens, fewest: int = 2
) -> Classes | Numbers:
    """The classes of the training rows, or that labels are numbers.

    Classes are in the order that the file defines, else in that of their numbers, else of their names.

    Args:
        named: the names that the file gives to the numbers in its column.
        fewest: the smallest number of classes that is accepted.

    Raises:
        ConfigError: if there are fewer classes, or the labels of a classification are fractions or lists.
    """
    column = config.label_column
    if getattr(config, "task", "") == "regression":
        return Numbers(column)
    if named is not None:
        return Classes(column, list(named), order=list(range(len(named))))
    strange = next((label for label in labels if not isinstance(label, str | bool | int | None)), None)
    if isinstance(strange, float) and not math.isnan(strange):
        problem, advice = "holds fractions, not classes", "write data.task: regression, or name another column"
        raise ConfigError("data.label_column", column, problem, advice)
    if strange is not None and not isinstance(strange, float):
        kind = type(strange).__name__
        held = {"list": "lists", "dict": "objects"}.get(kind, f"values of type {kind}")
        problem = f"holds {held}, not one label a row"
        raise ConfigError("data.label_column", column, problem, "name another column")
    names = sorted({name for name in map(label_name, labels) if name is not None})
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        names.sort(key=int)
    if len(names) < fewest:
        problem = f"has {'one class, ' + repr(names[0]) if names else 'no labels'}"
        raise ConfigError("data.label_column", column, problem, "name another column, or other data")
    return Classes(column, names)


def _number(label: Any) -> float | None:
    try:
        value = float(label) if isinstance(label, int | float | str) and not isinstance(label, bool) else math.nan
    except ValueError:
        return None
    return value if abs(value) <= _LARGEST else None  # not of NaN either


def _fault(label: Any, where: str, names: Sequence[str]) -> tuple[str, str]:
    if label_name(label) is None or label == -1:
        return f"{where} has no label ({label!r})", "remove unlabelled rows, or name other data"
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return (
        f"{where} holds {label!r}, which is no class of the training data: {shown}",
        "correct the row, or name other data",
    )
