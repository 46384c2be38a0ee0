"""Batches of labelled images. `image_preparation` prepares the files that they are read from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bellwether.trainer.data import Dataset, augment, image_preparation
from bellwether.trainer.data.cache import prepared
from bellwether.trainer.data.sampling import Integers, fold_in, random_bits
from bellwether.trainer.data.sources import locate
from bellwether.trainer.data.summary import DataSummary

if TYPE_CHECKING:
    from bellwether.trainer.data.images import ImageData

_REVISION = 3

Rows = Sequence[int] | npt.NDArray[np.int64]


@dataclass
class ImageSamples:
    """The images of one split. See `bellwether.trainer.data.Samples`.

    Attributes:
        folder: the prepared split: ``labels.npy`` [N], and ``pixels.npy`` [N, S, S, C] uint8 or ``rows.npy`` [N].
        train: whether to crop and flip at random.
        encoded: if there is no ``pixels.npy``, the `datasets.Dataset` with the encoded images of ``rows``.
    """

    folder: Path
    config: ImageData
    train: bool
    encoded: Any = None
    _pixels: npt.NDArray[np.uint8] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.labels = np.load(self.folder / "labels.npy")
        self.rows = None if self.encoded is None else np.load(self.folder / "rows.npy")

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}  # each worker maps the file itself

    def batch(self, indices: Rows, keys: Rows) -> dict[str, Tensor]:
        rows, own_keys = np.asarray(indices, dtype=np.int64), np.asarray(keys, dtype=np.int64)
        config = self.config
        images = augment.normalise(self._images(rows, own_keys), config.mean, config.std)
        if self.train and config.crop == "pad":
            images = augment.pad_crop(images, own_keys, config.flip)
        elif self.train and config.flip:
            images = augment.flip_half(images, own_keys)
        return {
            "pixel_values": torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
            "labels": torch.from_numpy(self.labels[rows]),
        }

    def _images(self, rows: Integers, keys: Integers) -> npt.NDArray[np.uint8]:
        """[B, S, S, C], before normalization."""
        if self.encoded is not None:
            return np.stack([self._decoded(int(row), int(key)) for row, key in zip(rows, keys, strict=True)])
        if self._pixels is None:
            self._pixels = np.load(self.folder / "pixels.npy", mmap_mode="r")
        return self._pixels[rows]

    def _decoded(self, row: int, key: int) -> npt.NDArray[np.uint8]:
        assert self.rows is not None
        value = self.encoded[int(self.rows[row])][self.config.image_column]
        image = image_preparation.decode(value, self.config.channels)
        if self.config.crop != "resized":
            return augment.resized(image, self.config.size)
        width, height = image.size
        box = augment.random_crop_box(width, height, key) if self.train else augment.central_crop_box(width, height)
        return augment.resized(image, self.config.size, box)


@dataclass
class AugmentedViews:
    """Held-out images, each with ``count`` views that are cropped and flipped as in training.

    ``pixel_values`` is [B, 1 + count, C, S, S]. A view is a function of (seed, row) and its number, independent of the
    number of processes.
    """

    plain: ImageSamples
    count: int
    seed: int

    def __len__(self) -> int:
        return len(self.plain)

    def batch(self, indices: Rows, keys: Rows) -> dict[str, Tensor]:
        """``keys`` are those of `evaluation_batches`, which are a function of the rows."""
        original, augmented = self.plain.batch(indices, keys), replace(self.plain, train=True)
        mixed = np.asarray(keys, dtype=np.int64) ^ fold_in(self.seed, 0)
        view_keys = (random_bits(mixed, self.count) >> np.uint64(1)).astype(np.int64)
        views = [augmented.batch(indices, view_keys[:, view])["pixel_values"] for view in range(self.count)]
        return {**original, "pixel_values": torch.stack([original["pixel_values"], *views], dim=1)}


def load(config: ImageData) -> Dataset:
    """Prepares labelled images. See `bellwether.trainer.data.load`."""
    source = locate(config)
    validation = locate(config, "data.validation") if config.validation is not None else None
    key = {
        "revision": _REVISION, "source": source.fingerprint, "columns": [config.image_column, config.label_column],
        "validation": config.validation_share if validation is None else validation.fingerprint,
        "channels": config.channels, "size": None if config.crop == "resized" else config.size,
    }  # fmt: skip

    entry = prepared(
        config.cache, "images", key, lambda folder: image_preparation.prepare(folder, config, source, validation)
    )
    names = json.loads((entry / "classes.json").read_text(encoding="utf-8"))

    def samples(part: str) -> ImageSamples:
        encoded = None
        if not (entry / part / "pixels.npy").exists():
            if part == "train" or validation is None:
                encoded = image_preparation.image_rows(source.open(), config, "data.source")
            else:
                encoded = image_preparation.image_rows(validation.open(), config, "data.validation")
        return ImageSamples(entry / part, config, part == "train", encoded)

    summary = DataSummary.read(entry)
    summary.source.add(source.listing)
    if validation is not None:
        summary.held_out["validation"].add(validation.listing)
    return Dataset(
        samples("train"), samples("validation"),
        classes=len(names), channels=config.channels, labels=names, fingerprint=entry.name, summary=summary,
    )  # fmt: skip
