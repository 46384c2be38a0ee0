"""Counts of labelled images: classes, and duplicates by the hash of their encoded content."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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


def duplicate_counts(
    images: Any, train: Integers, held_images: Any, held_out: Integers, column: str
) -> tuple[int, int]:
    """The training rows whose image an earlier row has, and the held-out rows whose image a training row has."""
    hashes = _hashes(images, train, column)
    return len(hashes) - len(np.unique(hashes)), int(np.isin(_hashes(held_images, held_out, column), hashes).sum())


def _hashes(images: Any, rows: Integers, column: str) -> npt.NDArray[np.uint64]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        batches = images.select(rows).iter(batch_size=1000)
        found = [value for batch in batches for value in pool.map(_content_hash, batch[column])]
    return np.array(found, dtype=np.uint64)


def _content_hash(value: Any) -> int:
    content = value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
