"""Preparation of labelled images: layout, labels and every image are checked, and small images are decoded once.

With the crops ``none`` and ``pad`` every image is resized to one size first, whatever its shape. If all of them fit in
`DECODED_LIMIT` bytes at that size, they are stored as one array. Otherwise, and for the crop ``resized``, which needs the
whole image, they are decoded for each batch.

A prepared folder holds ``classes.json`` and ``summary.json``; ``source`` and, with `data.validation`, ``held_out``: the listing
of the files, ``pixels.npy`` [N, S, S, C], ``plain.npy`` [N], ``hashes.npy`` [N] of the encoded images, ``undecodable.jsonl``; ``train`` and ``validation``:
``labels.npy`` [n] and ``rows.npy`` [n], row numbers of ``source`` or ``held_out``.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import image_labels, image_rows
from bellwether.trainer.data.image_facts import summarize
from bellwether.trainer.data.image_folders import ImageFiles
from bellwether.trainer.data.image_inspection import CHECKED, Inspection, inspect
from bellwether.trainer.data.image_rows import FileRows, ImageRows, TableRows
from bellwether.trainer.data.image_sources import ImageSource, ParquetRows, locate
from bellwether.trainer.data.sampling import Integers
from bellwether.trainer.data.sources import split
from bellwether.trainer.data.summary import DataSummary, SourceSummary, undecodable_error
from bellwether.trainer.log import EVERY_RANK

if TYPE_CHECKING:
    from bellwether.trainer.data.images import ImageData

log = logging.getLogger(__name__)

KEYS = {"source": "data.source", "held_out": "data.validation"}  # of the parts of a prepared folder
DECODED_LIMIT = 2 * 10**9  # bytes


@dataclass
class _Part:
    """The images of ``data.source`` or ``data.validation``, checked; `rows` are those that can be decoded."""

    rows: Integers
    labels: Integers
    inspection: Inspection
    summary: SourceSummary


def prepare(folder: Path, config: ImageData, source: ImageSource, validation: ImageSource | None) -> None:
    """Writes the files that the module describes. Goes on where an earlier call was ended.

    Raises:
        ConfigError: if the rows are not labelled images, no image can be decoded, or a class of `validation` is unknown in
            `source`.
    """
    log.info("reading data.source %s", config.source, extra=EVERY_RANK)
    part, names = _inspected(folder / "source", config, source, "data.source", None)
    (folder / "classes.json").write_text(json.dumps(names), encoding="utf-8")
    summary = DataSummary("images", config.source, part.summary)
    held = part
    if validation is None:
        train, held_out = split(len(part.rows), config)
    else:
        held, _ = _inspected(folder / "held_out", config, validation, "data.validation", names)
        train, held_out = np.arange(len(part.rows)), np.arange(len(held.rows))
        summary.held_out["validation"] = held.summary
    for name, of, chosen in (("train", part, train), ("validation", held, held_out)):
        (folder / name).mkdir(exist_ok=True)
        np.save(folder / name / "labels.npy", of.labels[chosen])
        np.save(folder / name / "rows.npy", of.rows[chosen])
    trained = np.bincount(part.labels[train], minlength=len(names)).tolist()
    summary.source.find_empty_classes(dict(zip(names, trained, strict=True)))
    hashes, held_hashes = part.inspection.hashes[part.rows[train]], held.inspection.hashes[held.rows[held_out]]
    summary.count_rows(hashes, {"validation": held_hashes})
    summary.write(folder)
    for name in KEYS:
        shutil.rmtree(folder / name / CHECKED, ignore_errors=True)


def _inspected(
    folder: Path, config: ImageData, source: ImageSource, key: str, names: list[str] | None
) -> tuple[_Part, list[str]]:
    folder.mkdir(exist_ok=True)
    rows: ImageRows
    if source.files is None:
        assert source.table is not None
        table = image_table(source.table(), config, key)
        labels, names = image_labels.of_table(table, config, names, key)
        rows = TableRows(table, config.image_column, source.describe)
    else:
        labels, names = image_labels.of_files(source.files, config, names, key)
        _save_listing(folder, source)
        rows = FileRows(folder, source.base)
    bytes_decoded = len(rows) * config.size**2 * config.channels
    size = None if config.crop == "resized" or bytes_decoded > DECODED_LIMIT else config.size
    summary = SourceSummary()
    inspection = inspect(rows, config.channels, size, folder, summary, key, config.retry)
    np.save(folder / "plain.npy", inspection.plain)
    np.save(folder / "hashes.npy", inspection.hashes)
    kept = np.setdiff1d(np.arange(len(rows)), list(inspection.undecodable))
    if not len(kept):
        raise undecodable_error(summary, key)
    summary.add(summarize(labels[kept], names))
    return _Part(kept, labels[kept], inspection, summary), names


def _save_listing(folder: Path, source: ImageSource) -> None:
    files = source.files
    if isinstance(files, ImageFiles):
        image_rows.save(folder, files.names)
    elif files is not None:
        image_rows.save(
            folder, files.names, [shard.relative_to(source.base).as_posix() for shard in files.shards], files.places
        )


def place_of_rows(source: ImageSource) -> dict[str, Any]:
    """Where the encoded images of a part are, as JSON-like facts for `open_rows`: no process but one looks for the source."""
    if source.files is not None:
        return {"base": str(source.base)}
    assert source.table is not None
    table = source.table()
    stored = [file["filename"] for file in getattr(table, "cache_files", [])]
    if getattr(table, "_indices", None) is not None or len(_stored_rows(stored)) != len(table):
        stored = []  # a part of what the files hold, as of a split such as train[:10%]
    return {"table": stored, "files": [str(file) for file in getattr(source.describe, "files", ())]}


def open_rows(folder: Path, config: ImageData, place: dict[str, Any], key: str) -> ImageRows:
    """The encoded images of a prepared part.

    Args:
        place: see `place_of_rows`.
    """
    if "base" in place:
        return FileRows(folder, Path(place["base"]))
    describe = ParquetRows([Path(file) for file in place["files"]]) if place["files"] else "row {}".format
    if place["table"]:
        rows = _stored_rows(place["table"])
    else:  # rows that are made, not stored
        table = locate(config, key).table
        assert table is not None
        rows = table()
    return TableRows(image_table(rows, config, key), config.image_column, describe)


def _stored_rows(files: Sequence[str]) -> Any:
    from datasets import Dataset, concatenate_datasets

    return concatenate_datasets([Dataset.from_file(file) for file in files]) if files else []


def image_table(rows: Any, config: ImageData, key: str) -> Any:
    """Selects the image and the label column of a `datasets.Dataset`; the images stay encoded.

    Raises:
        ConfigError: if a column is missing or has another content, or a row has no label.
    """
    from datasets import Image

    for column, column_key in ((config.image_column, "data.image_column"), (config.label_column, "data.label_column")):
        if column not in rows.column_names:
            have = ", ".join(rows.column_names)
            raise ConfigError(column_key, column, f"no such column in {key}", f"it has: {have}")
    if empty := rows.data.column(config.label_column).null_count:
        problem = f"is empty in {empty} rows of {key}"
        raise ConfigError("data.label_column", config.label_column, problem, "fill or remove them")
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


def is_decoded(folder: Path) -> bool:
    """Whether a prepared part has its pixels, so that the encoded images are not needed."""
    return (folder / "pixels.npy").exists()
