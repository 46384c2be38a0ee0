"""Labelled images: decoded once where they fit, else each time they are drawn.

With the crops ``none`` and ``pad`` every image is first resized to one size, whatever its shape. If all of them fit in
2 GB at that size they are kept as one array of bytes on disk. Otherwise, and for the crop ``resized``, which needs the whole image, the
encoded images are decoded for each batch, by the workers.
"""

from __future__ import annotations

import io
import json
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.config.schema import ImageData
from bellwether.trainer.data import Data, augment
from bellwether.trainer.data.cache import prepared, say
from bellwether.trainer.data.sampling import Integers, draws, key
from bellwether.trainer.data.sources import Source, locate, split

DECODED_LIMIT = 2 * 10**9  # bytes
_REVISION = 2

Rows = Sequence[int] | npt.NDArray[np.int64]


@dataclass
class ImageSamples:
    """Images of one part. See `bellwether.trainer.data.Samples`.

    Attributes:
        folder: the prepared part: ``labels.npy`` [N], and ``pixels.npy`` [N, S, S, C] uint8 or ``rows.npy`` [N].
        train: crop and flip at random; else as in evaluation.
        encoded: where there are no pixels, the `datasets.Dataset` whose ``rows`` hold the encoded images.
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
        return {**self.__dict__, "_pixels": None}  # a worker maps the file itself

    def batch(self, indices: Rows, keys: Rows) -> dict[str, Tensor]:
        rows, seeds = np.asarray(indices, dtype=np.int64), np.asarray(keys, dtype=np.int64)
        config = self.config
        images = augment.normalise(self._images(rows, seeds), config.mean, config.std)
        if self.train and config.crop == "pad":
            images = augment.pad_crop(images, seeds, config.flip)
        elif self.train and config.flip:
            images = augment.mirror(images, seeds)
        return {
            "pixel_values": torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
            "labels": torch.from_numpy(self.labels[rows]),
        }

    def _images(self, rows: Integers, keys: Integers) -> npt.NDArray[np.uint8]:
        """[B, S, S, C], before normalisation."""
        if self.encoded is not None:
            return np.stack([self._decoded(int(row), int(key)) for row, key in zip(rows, keys, strict=True)])
        if self._pixels is None:
            self._pixels = np.load(self.folder / "pixels.npy", mmap_mode="r")
        return self._pixels[rows]

    def _decoded(self, row: int, key: int) -> npt.NDArray[np.uint8]:
        assert self.rows is not None
        value = self.encoded[int(self.rows[row])][self.config.image_column]
        image = decode(value, len(self.config.mean))
        if self.config.crop != "resized":
            return augment.resized(image, self.config.size)
        width, height = image.size
        box = augment.random_area(width, height, key) if self.train else augment.centre(width, height)
        return augment.resized(image, self.config.size, box)


@dataclass
class Views:
    """Held-out images, each with ``count`` views as training would crop and mirror it: ``pixel_values`` [B, 1 + count, C, S, S].

    A view is a function of (seed, row) and its number: the same whatever the number of processes.
    """

    plain: ImageSamples
    count: int
    seed: int

    def __len__(self) -> int:
        return len(self.plain)

    def batch(self, indices: Rows, keys: Rows) -> dict[str, Tensor]:
        """``keys`` are those of `evaluation_batches`, which follow from the rows."""
        whole, augmented = self.plain.batch(indices, keys), replace(self.plain, train=True)
        mixed = np.asarray(keys, dtype=np.int64) ^ key(self.seed, 0)
        drawn = (draws(mixed, self.count) >> np.uint64(1)).astype(np.int64)
        views = [augmented.batch(indices, drawn[:, view])["pixel_values"] for view in range(self.count)]
        return {**whole, "pixel_values": torch.stack([whole["pixel_values"], *views], dim=1)}


def decode(value: Any, channels: int) -> Any:
    """A PIL image, grey or RGB, from what a column holds: encoded bytes or the path of a file.

    Raises:
        ConfigError: naming the file, if it is none or broken.
    """
    from PIL import Image

    try:
        if value["bytes"] is None and value["path"] is None:
            raise ValueError("its row holds neither bytes nor a path")
        image = Image.open(io.BytesIO(value["bytes"]) if value["bytes"] is not None else value["path"])
        if image.mode.startswith(("I", "F")):
            image = _eight_bits(image)
        return image.convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        problem = f"cannot be decoded: {error}"
        raise ConfigError("data.source", value["path"] or "an image", problem, "mend it or take it out") from error


def _eight_bits(image: Any) -> Any:
    """Grey of up to 16 bits, in 8. Pillow's own conversion clips instead: all beyond 255 becomes white."""
    from PIL import Image

    values = np.asarray(image)
    # Of 16-bit modes only TIFF fills fewer bits, and says so in its tag BitsPerSample. Pillow scales others to 16.
    bits = getattr(image, "tag_v2", {}).get(258, [16])[0] if image.mode.startswith("I;") else 16
    if image.mode == "F" or values.min() < 0 or values.max() >= 2**bits:
        raise ValueError(f"values of mode {image.mode} that are not whole numbers of {bits} bits")
    return Image.fromarray(np.rint(values * (255 / (2**bits - 1))).astype(np.uint8))


def load(config: ImageData) -> Data:
    """See `bellwether.trainer.data.load`."""
    source = locate(config)
    validation = locate(config, "data.validation") if config.validation is not None else None
    key = {
        "revision": _REVISION, "source": source.fingerprint, "columns": [config.image_column, config.label_column],
        "validation": config.validation_share if validation is None else validation.fingerprint,
        "channels": len(config.mean), "size": None if config.crop == "resized" else config.size,
    }  # fmt: skip

    entry = prepared(config.cache, "images", key, lambda folder: _prepare(folder, config, source, validation))
    names = json.loads((entry / "classes.json").read_text(encoding="utf-8"))

    def samples(part: str) -> ImageSamples:
        encoded = None
        if not (entry / part / "pixels.npy").exists():
            if part == "train" or validation is None:
                encoded = _with_images(source.open(), config, "data.source")
            else:
                encoded = _with_images(validation.open(), config, "data.validation")
        return ImageSamples(entry / part, config, part == "train", encoded)

    channels = len(config.mean)
    return Data(
        samples("train"), samples("validation"),
        classes=len(names), channels=channels, labels=names, fingerprint=entry.name,
    )  # fmt: skip


def _prepare(folder: Path, config: ImageData, source: Source, validation: Source | None) -> None:
    say(f"reading {config.source}")
    images = _with_images(source.open(), config, "data.source")
    labels, names = _labels(images, config, None, "data.source")
    (folder / "classes.json").write_text(json.dumps(names), encoding="utf-8")
    if validation is None:
        train, held_out = split(len(images), config)
        _write(folder / "train", images, train, labels, config)
        _write(folder / "validation", images, held_out, labels, config)
    else:
        _write(folder / "train", images, np.arange(len(images)), labels, config)
        images = _with_images(validation.open(), config, "data.validation")
        labels, _ = _labels(images, config, names, "data.validation")
        _write(folder / "validation", images, np.arange(len(images)), labels, config)


def _with_images(rows: Any, config: ImageData, key: str) -> Any:
    """The two columns that matter, with images left encoded."""
    from datasets import Image

    for column, place in ((config.image_column, "data.image_column"), (config.label_column, "data.label_column")):
        if column not in rows.column_names:
            have = ", ".join(rows.column_names)
            raise ConfigError(place, column, f"no such column in {key}", f"it has: {have}")
        if empty := rows.data.column(column).null_count:
            raise ConfigError(place, column, f"is empty in {empty} rows of {key}", "fill or remove them")
    if not len(rows):
        raise ConfigError(key, config.source, "has no rows", "name other data")
    rows = rows.select_columns(list({config.image_column, config.label_column}))
    try:
        return rows.cast_column(config.image_column, Image(decode=False))
    except (TypeError, ValueError) as error:
        held = rows.features[config.image_column]
        raise ConfigError(
            "data.image_column", config.image_column, f"holds {held}, not images", "name the column that does"
        ) from error


def _labels(rows: Any, config: ImageData, names: list[str] | None, key: str) -> tuple[Integers, list[str]]:
    """Labels as numbers, and the names of the classes: those given, or else as found.

    Classes are a `ClassLabel`'s names, 0 .. n - 1 for plain numbers, and sorted for plain text.
    """
    from datasets import ClassLabel, Value

    feature = rows.features[config.label_column]
    if not isinstance(feature, ClassLabel | Value) or feature.dtype.startswith(("float", "double", "date", "time")):
        raise ConfigError("data.label_column", config.label_column, "holds no classes", "name the column that does")
    found = rows.select_columns([config.label_column]).with_format("numpy")[:][config.label_column]
    if np.issubdtype(found.dtype, np.integer) and found.min() < 0:
        problem = f"has the label {found.min()} in {key}"
        raise ConfigError("data.label_column", config.label_column, problem, "labels start at 0; name labelled rows")
    if isinstance(feature, ClassLabel):
        found = np.array(feature.names)[found]
        own = list(feature.names)
    elif np.issubdtype(found.dtype, np.integer):
        own = [str(i) for i in range(int(found.max()) + 1)]
    else:
        own = sorted({str(f) for f in found})
    names = names or own
    number = {name: index for index, name in enumerate(names)}
    texts = [str(f) for f in found]
    unknown = sorted(set(texts) - set(number))
    if unknown:
        problem = f"{key} has labels that data.source does not have: {', '.join(unknown[:5])}"
        raise ConfigError("data.label_column", config.label_column, problem, "hold out data of the same classes")
    return np.array([number[text] for text in texts], dtype=np.int64), names


def _write(folder: Path, images: Any, rows: Integers, labels: Integers, config: ImageData) -> None:
    folder.mkdir()
    np.save(folder / "labels.npy", labels[rows])
    channels = len(config.mean)
    shape = (len(rows), config.size, config.size, channels)
    if config.crop == "resized" or math.prod(shape) > DECODED_LIMIT:
        np.save(folder / "rows.npy", rows)
        return
    began = time.monotonic()
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)
    done = 0

    def at_size(value: Any) -> npt.NDArray[np.uint8]:
        return augment.resized(decode(value, channels), config.size)

    # Pillow decodes without Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in images.select(rows).iter(batch_size=1000):
            for image in pool.map(at_size, batch[config.image_column]):
                pixels[done] = image
                done += 1
    pixels.flush()
    say(f"{len(rows):,} images of {folder.name} decoded in {time.monotonic() - began:.1f} s")
