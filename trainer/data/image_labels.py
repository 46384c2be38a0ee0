"""The class of each image as a number, and the names of the classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data.image_folders import ImageFiles
from bellwether.trainer.data.image_shards import ShardImages
from bellwether.trainer.data.sampling import Integers

if TYPE_CHECKING:
    from bellwether.trainer.data.images import ImageData

_MOST_CLASSES = 2**20  # larger numbers are identifiers of something else


def of_files(
    files: ImageFiles | ShardImages, config: ImageData, known: list[str] | None, key: str
) -> tuple[Integers, list[str]]:
    """Labels and class names of the images of folders or shards.

    Args:
        known: the classes to use; None: as found.

    Raises:
        ConfigError: as `numbered`.
    """
    names = files.classes if isinstance(files, ImageFiles) else None
    return _numbered(np.array(files.labels), names, config, known, key)


def of_table(rows: Any, config: ImageData, known: list[str] | None, key: str) -> tuple[Integers, list[str]]:
    """Labels and class names of the label column of a `datasets.Dataset`. The names are those of a `ClassLabel`.

    Raises:
        ConfigError: if the column is no label column, or as `numbered`.
    """
    from datasets import ClassLabel, Value

    feature = rows.features[config.label_column]
    if not isinstance(feature, ClassLabel | Value) or feature.dtype.startswith(("float", "double", "date", "time")):
        raise ConfigError("data.label_column", config.label_column, "holds no classes", "name the column that does")
    labels = rows.select_columns([config.label_column]).with_format("numpy")[:][config.label_column]
    names = list(feature.names) if isinstance(feature, ClassLabel) else None
    return _numbered(labels, names, config, known, key)


def _numbered(
    labels: Any, names: list[str] | None, config: ImageData, known: list[str] | None, key: str
) -> tuple[Integers, list[str]]:
    """Without given names, classes are 0 .. n - 1 where the labels are integers, and sorted by name where they are text."""
    if np.issubdtype(labels.dtype, np.integer):
        if labels.min() < 0:
            problem = f"has the label {labels.min()} in {key}"
            raise ConfigError(
                "data.label_column", config.label_column, problem, "labels start at 0; name labelled rows"
            )
        if labels.max() >= _MOST_CLASSES:
            problem = f"has the label {labels.max():,} in {key}: these are no numbers of classes"
            raise ConfigError("data.label_column", config.label_column, problem, "name the column with the classes")
        found = names or [str(number) for number in range(int(labels.max()) + 1)]
        if known is None or known[: len(found)] == found:
            return labels.astype(np.int64), known or found
        labels = np.array(found)[labels]
    texts = [str(label) for label in labels]
    if empty := sum(not text.strip() for text in texts):
        problem = f"is empty in {empty} rows of {key}"
        raise ConfigError("data.label_column", config.label_column, problem, "fill or remove them")
    found = known or names or sorted(set(texts))
    number = {name: index for index, name in enumerate(found)}
    if unknown := sorted(set(texts) - set(number)):
        problem = f"{key} has labels that data.source does not have: {', '.join(unknown[:5])}"
        raise ConfigError("data.label_column", config.label_column, problem, "hold out data of the same classes")
    return np.array([number[text] for text in texts], dtype=np.int64), found
