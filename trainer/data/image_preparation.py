"""Preparation of labelled images: columns, labels and classes are checked, and small images are decoded once.

With the crops ``none`` and ``pad`` every image is resized to one size first, whatever its shape. If all of them fit in
`DECODED_LIMIT` bytes at that size, they are stored as one array. Otherwise, and for the crop ``resized``, which needs the
whole image, the row numbers are stored and the encoded images are decoded for each batch.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import augment
from bellwether.trainer.data.image_facts import duplicate_counts, summarize
from bellwether.trainer.data.sampling import Integers
from bellwether.trainer.data.sources import Source, split
from bellwether.trainer.data.summary import DataSummary
from bellwether.trainer.log import EVERY_RANK

if TYPE_CHECKING:
    from bellwether.trainer.data.images import ImageData

log = logging.getLogger(__name__)

DECODED_LIMIT = 2 * 10**9  # bytes


def prepare(folder: Path, config: ImageData, source: Source, validation: Source | None) -> None:
    """Writes ``classes.json``, ``train`` and ``validation`` to a folder.

    Raises:
        ConfigError: if the rows are not labelled images, or a class of `validation` is unknown in `source`.
    """
    log.info("reading data.source %s", config.source, extra=EVERY_RANK)
    images = image_rows(source.open(), config, "data.source")
    labels, names = _labels(images, config, None, "data.source")
    (folder / "classes.json").write_text(json.dumps(names), encoding="utf-8")
    summary = DataSummary("images", config.source, summarize(labels, names))
    held_images, held_labels = images, labels
    if validation is None:
        train, held_out = split(len(images), config)
    else:
        held_images = image_rows(validation.open(), config, "data.validation")
        held_labels, _ = _labels(held_images, config, names, "data.validation")
        train, held_out = np.arange(len(images)), np.arange(len(held_images))
        summary.held_out["validation"] = summarize(held_labels, names)
    _write(folder / "train", images, train, labels, config)
    _write(folder / "validation", held_images, held_out, held_labels, config)
    summary.rows_train, summary.rows_held_out = len(train), {"validation": len(held_out)}
    summary.duplicates_train, overlap = duplicate_counts(images, train, held_images, held_out, config.image_column)
    summary.overlap = {"validation": overlap}
    summary.write(folder)


def image_rows(rows: Any, config: ImageData, key: str) -> Any:
    """Selects the image and the label column of a `datasets.Dataset`; the images stay encoded.

    Raises:
        ConfigError: if a column is missing, has empty rows or does not contain images.
    """
    from datasets import Image

    for column, column_key in ((config.image_column, "data.image_column"), (config.label_column, "data.label_column")):
        if column not in rows.column_names:
            have = ", ".join(rows.column_names)
            raise ConfigError(column_key, column, f"no such column in {key}", f"it has: {have}")
        if empty := rows.data.column(column).null_count:
            raise ConfigError(column_key, column, f"is empty in {empty} rows of {key}", "fill or remove them")
    if not len(rows):
        raise ConfigError(key, config.source, "has no rows", "name other data")
    rows = rows.select_columns(list({config.image_column, config.label_column}))
    try:
        return rows.cast_column(config.image_column, Image(decode=False))
    except (TypeError, ValueError) as error:
        column_type = rows.features[config.image_column]
        raise ConfigError(
            "data.image_column", config.image_column, f"holds {column_type}, not images", "name the column that does"
        ) from error


def _labels(rows: Any, config: ImageData, names: list[str] | None, key: str) -> tuple[Integers, list[str]]:
    """The labels as class numbers, and the names of the classes.

    The names are those of a `ClassLabel`, 0 .. n - 1 for integers, and sorted for text.

    Args:
        names: the classes to use; None: as found in the rows.
    """
    from datasets import ClassLabel, Value

    feature = rows.features[config.label_column]
    if not isinstance(feature, ClassLabel | Value) or feature.dtype.startswith(("float", "double", "date", "time")):
        raise ConfigError("data.label_column", config.label_column, "holds no classes", "name the column that does")
    labels = rows.select_columns([config.label_column]).with_format("numpy")[:][config.label_column]
    if np.issubdtype(labels.dtype, np.integer) and labels.min() < 0:
        problem = f"has the label {labels.min()} in {key}"
        raise ConfigError("data.label_column", config.label_column, problem, "labels start at 0; name labelled rows")
    if isinstance(feature, ClassLabel):
        labels = np.array(feature.names)[labels]
        class_names = list(feature.names)
    elif np.issubdtype(labels.dtype, np.integer):
        class_names = [str(i) for i in range(int(labels.max()) + 1)]
    else:
        class_names = sorted({str(label) for label in labels})
    names = names or class_names
    number = {name: index for index, name in enumerate(names)}
    texts = [str(label) for label in labels]
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

    # Pillow releases the interpreter lock while it decodes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in images.select(rows).iter(batch_size=1000):
            for image in pool.map(at_size, batch[config.image_column]):
                pixels[done] = image
                done += 1
    pixels.flush()
    seconds = time.monotonic() - began
    log.info("decoded %s images of the %s split in %.1f s", f"{len(rows):,}", folder.name, seconds, extra=EVERY_RANK)


def decode(value: Any, channels: int) -> Any:
    """Decodes one value of an image column, encoded bytes or the path of a file, to a grey or RGB PIL image.

    Args:
        channels: 1 for grey, 3 for RGB.

    Raises:
        ConfigError: naming the file, if it cannot be decoded.
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
        raise ConfigError("data.source", value["path"] or "an image", problem, "repair or remove it") from error


def _eight_bits(image: Any) -> Any:
    """Scales grey of up to 16 bits to 8 bits. Pillow's own conversion clips: everything above 255 becomes white."""
    from PIL import Image

    values = np.asarray(image)
    # Of the 16-bit modes only TIFF uses fewer bits, given by its tag BitsPerSample. Pillow scales the others to 16.
    bits = getattr(image, "tag_v2", {}).get(258, [16])[0] if image.mode.startswith("I;") else 16
    if image.mode == "F" or values.min() < 0 or values.max() >= 2**bits:
        raise ValueError(f"values of mode {image.mode} that are not whole numbers of {bits} bits")
    return Image.fromarray(np.rint(values * (255 / (2**bits - 1))).astype(np.uint8))
