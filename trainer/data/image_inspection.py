"""Reads and decodes every image once, in parallel, before the first step: finds damaged ones and counts what is unusual."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bellwether.trainer.data import augment
from bellwether.trainer.data.image_decoding import BACKGROUND, LARGE, Traits, Undecodable, decode
from bellwether.trainer.data.image_rows import ImageRows
from bellwether.trainer.data.summary import UNDECODABLE, SourceSummary
from bellwether.trainer.data.transient import retrying
from bellwether.trainer.log import EVERY_RANK

log = logging.getLogger(__name__)

LIST = "undecodable.jsonl"
_WINDOW = 1024  # images in flight
_PROGRESS = 10.0  # seconds
_TINY = 8  # pixels
_SIZES = 100  # distinct sizes that a summary lists


@dataclass
class Inspection:
    """What reading all images has shown.

    Attributes:
        hashes: of the encoded content of each row, 64 bits; 0 for those that cannot be read.
        plain: rows that every JPEG decoder decodes alike, see `Traits.is_plain_jpeg`.
        undecodable: the reason by row.
    """

    hashes: npt.NDArray[np.uint64]
    plain: npt.NDArray[np.bool_]
    undecodable: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Image:
    traits: Traits
    hash: int
    pixels: npt.NDArray[np.uint8] | None


def inspect(
    rows: ImageRows, channels: int, size: int | None, folder: Path, summary: SourceSummary, key: str, retry: float = 0.0
) -> Inspection:
    """Decodes all images, and stores them in ``folder/pixels.npy`` if `size` is given.

    Undecodable images are listed in ``folder/undecodable.jsonl``, and have zeros in ``pixels.npy``.

    Args:
        channels: 1 for grey, 3 for RGB.
        size: height and width at which the images are stored; None: images are only checked.
        summary: takes the counts.
        key: the config key that names the images, for the log.
        retry: seconds for which a read that fails in passing is repeated.

    Raises:
        OSError: if a file cannot be read for a reason that is not the image's.
    """
    count = len(rows)
    found = Inspection(np.zeros(count, np.uint64), np.zeros(count, np.bool_))
    pixels = None
    if size is not None:
        shape = (count, size, size, channels)
        pixels = np.lib.format.open_memmap(folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)

    def one(name: str, read: Callable[[], bytes]) -> _Image | str:
        try:
            data = retrying(retry, read)
            image, traits = decode(data, channels, name, header_only=size is None)
        except Undecodable as error:
            return str(error)
        decoded = None if size is None else augment.resized(image, size)
        return _Image(traits, int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little"), decoded)

    began = reported = time.monotonic()
    counts = _Counts(channels)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the interpreter lock while it decodes
        for row, image in enumerate(_windows(pool, one, rows.reads())):
            if isinstance(image, str):
                found.undecodable[row] = image
            else:
                found.hashes[row], found.plain[row] = image.hash, image.traits.is_plain_jpeg
                counts.add(image.traits, rows, row)
                if pixels is not None:
                    pixels[row] = image.pixels
            if time.monotonic() - reported > _PROGRESS:
                reported = time.monotonic()
                log.info("%s: checked %s of %s images", key, f"{row + 1:,}", f"{count:,}", extra=EVERY_RANK)
    if pixels is not None:
        pixels.flush()
    counts.write(summary)
    _list_undecodable(found.undecodable, rows, folder, summary)
    seconds = time.monotonic() - began
    log.info("%s: checked %s images in %.1f s", key, f"{count:,}", seconds, extra=EVERY_RANK)
    return found


def _windows(pool: ThreadPoolExecutor, one: Callable[..., Any], reads: Iterator[Any]) -> Iterator[Any]:
    """`pool.map`, which by itself would hold all images at once."""
    while window := list(islice(reads, _WINDOW)):
        yield from pool.map(lambda item: one(*item), window)


def _list_undecodable(reasons: dict[int, str], rows: ImageRows, folder: Path, summary: SourceSummary) -> None:
    summary.undecodable = len(reasons)
    with (folder / LIST).open("w", encoding="utf-8") as file:
        for row, reason in reasons.items():
            summary.note(UNDECODABLE, "left out", f"{rows.name(row)}: {reason}")
            file.write(json.dumps({"image": rows.name(row), "row": row, "reason": reason}) + "\n")


class _Counts:
    """Collects the traits of images for a `SourceSummary`."""

    def __init__(self, channels: int) -> None:
        self._target = "grey" if channels == 1 else "RGB"
        self._modes: Counter[str] = Counter()
        self._sizes: Counter[str] = Counter()
        self._notes = SourceSummary()

    def add(self, traits: Traits, rows: ImageRows, row: int) -> None:
        width, height = traits.size
        self._modes[traits.mode] += 1
        self._sizes[f"{width} x {height}"] += 1
        self._notes.rotated += traits.rotated
        self._notes.transparent += traits.transparent
        white = "white" if BACKGROUND == (255, 255, 255) else str(BACKGROUND)
        for present, what, done in (
            (traits.rotated, "images with an EXIF orientation", "turned as it says"),
            (traits.transparent, "transparent images", f"composited over {white}"),
            (traits.animated, "animated images", "the first frame is used"),
            (traits.wrong_suffix, "images with the suffix of another format", "read by their content"),
            (traits.large, f"images of more than {LARGE:,} pixels", "read"),
            (min(width, height) < _TINY, f"images of less than {_TINY} pixels in a side", "enlarged"),
            (traits.mode not in ("L", "RGB"), f"images of mode {traits.mode}", f"converted to {self._target}"),
            (self._target == "RGB" and traits.mode == "L", "grey images", "converted to RGB"),
            (self._target == "grey" and traits.mode == "RGB", "colour images", "converted to grey"),
        ):
            if present:
                self._notes.note(what, done, rows.name(row) if self._needs_example(what) else "")

    def _needs_example(self, what: str) -> bool:
        return not any(found.what == what for found in self._notes.findings)

    def write(self, summary: SourceSummary) -> None:
        self._notes.modes = dict(self._modes.most_common())
        common = self._sizes.most_common(_SIZES)
        self._notes.sizes = dict(common)
        if others := self._sizes.total() - sum(count for _, count in common):
            self._notes.sizes["others"] = others
        summary.add(self._notes)
