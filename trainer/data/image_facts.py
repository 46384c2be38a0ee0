"""Counts of labelled images by class."""

from __future__ import annotations

import numpy as np

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
