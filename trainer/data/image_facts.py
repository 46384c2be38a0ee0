"""Counts of labelled images: classes, and duplicates by the hash of their encoded content."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bellwether.trainer.data.sampling import Integers
from bellwether.trainer.data.summary import SourceSummary


def summarize(labels: Integers, names: list[str]) -> SourceSummary:
    """The counts of a source with these labels."""
    counts = np.bincount(labels, minlength=len(names)).tolist()
    classes = dict(zip(names, counts, strict=True))
    return SourceSummary(
        rows=len(labels), classes=classes, classes_empty=[name for name, count in classes.items() if not count],
        histogram_of="images by class", histogram=classes,
    )  # fmt: skip


def duplicate_counts(train: npt.NDArray[np.uint64], held_out: npt.NDArray[np.uint64]) -> tuple[int, int]:
    """The training rows whose image an earlier one has, and the held-out rows whose image a training row has.

    Args:
        train, held_out: hashes of the encoded images.
    """
    return len(train) - len(np.unique(train)), int(np.isin(held_out, train).sum())
