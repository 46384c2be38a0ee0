"""Reads and decodes every image once, in parallel, before the first step: finds damaged ones and counts what is unusual."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from bellwether.trainer import run_paths
from bellwether.trainer.data import augment
from bellwether.trainer.data.image_decoding import BACKGROUND, LARGE, Traits, Undecodable, decode
from bellwether.trainer.data.image_rows import ImageRows
from bellwether.trainer.data.summary import UNDECODABLE, SourceSummary
from bellwether.trainer.data.transient import retrying
from bellwether.trainer.log import EVERY_RANK

log = logging.getLogger(__name__)

LIST = "undecodable.jsonl"
CHECKED = "checked"  # the folder with what is known of each chunk
CHUNK = 4096  # images
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


def content_hash(data: bytes) -> int:
    """64 bits of a hash of an encoded image."""
    return xxhash.xxh3_64_intdigest(data)


def inspect(
    rows: ImageRows, channels: int, size: int | None, folder: Path, summary: SourceSummary, key: str, retry: float = 0.0
) -> Inspection:
    """Decodes all images, and stores them in ``folder/pixels.npy`` if `size` is given. Goes on where an earlier call was ended.

    Undecodable images are listed in ``folder/undecodable.jsonl``, and have zeros in ``pixels.npy``. What is known of each `CHUNK` images is
    kept in ``folder/checked``, which the caller removes at last.

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
    pixels = None if size is None else _pixels(folder / "pixels.npy", (count, size, size, channels))

    def one(name: str, read: Callable[[], bytes]) -> _Image | str:
        try:
            data = retrying(retry, read)
            image, traits = decode(data, channels, name, header_only=size is None)
        except Undecodable as error:
            return str(error)
        return _Image(traits, content_hash(data), None if size is None else augment.resized(image, size))

    progress = _Progress(key, count)
    (folder / CHECKED).mkdir(exist_ok=True)
    chunks = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the interpreter lock while it decodes
        for begin in range(0, count, CHUNK):
            end = min(begin + CHUNK, count)
            file = folder / CHECKED / f"{begin:09d}.npz"
            chunk = _Chunk.read(file)
            if chunk is None:
                images = _windows(pool, one, rows.reads(begin, end))
                chunk = _Chunk.of(images, rows, channels, begin, end, pixels, progress)
                if pixels is not None:
                    pixels.flush()
                chunk.write(file)
            else:
                progress.earlier += end - begin
            chunks.append(chunk)
    counts = _Counts(channels)
    for chunk in chunks:
        counts.merge(chunk.counts)
    counts.write(summary)
    undecodable = {row: reason for chunk in chunks for row, reason in chunk.undecodable.items()}
    _list_undecodable(undecodable, rows, folder, summary)
    progress.end()
    none = np.zeros(0, np.uint64)
    hashes = np.concatenate([none, *(chunk.hashes for chunk in chunks)])
    plain = np.concatenate([none.astype(np.bool_), *(chunk.plain for chunk in chunks)])
    return Inspection(hashes, plain, undecodable)


def _pixels(file: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    """A new array on disk, or the one that an earlier call has begun."""
    with contextlib.suppress(OSError, ValueError):
        found = np.lib.format.open_memmap(file, mode="r+")
        if found.shape == shape and found.dtype == np.uint8:
            return found
    return np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)


class _Progress:
    """Logs how many images were checked."""

    def __init__(self, key: str, count: int) -> None:
        self._key, self._count = key, count
        self._began = self._reported = time.monotonic()
        self.earlier = 0  # images that an earlier call has checked

    def reached(self, checked: int) -> None:
        if time.monotonic() - self._reported > _PROGRESS:
            self._reported = time.monotonic()
            log.info("%s: checked %s of %s images", self._key, f"{checked:,}", f"{self._count:,}", extra=EVERY_RANK)

    def end(self) -> None:
        seconds = time.monotonic() - self._began
        before = f", {self.earlier:,} of them before" if self.earlier else ""
        log.info("%s: checked %s images%s in %.1f s", self._key, f"{self._count:,}", before, seconds, extra=EVERY_RANK)


@dataclass
class _Chunk:
    """What is known of some consecutive rows. Attributes as those of `Inspection`."""

    hashes: npt.NDArray[np.uint64]
    plain: npt.NDArray[np.bool_]
    undecodable: dict[int, str]
    counts: dict[str, Any]

    @classmethod
    def of(
        cls,
        images: Iterator[Any],
        rows: ImageRows,
        channels: int,
        begin: int,
        end: int,
        pixels: Any,
        progress: _Progress,
    ) -> _Chunk:
        hashes, plain = np.zeros(end - begin, np.uint64), np.zeros(end - begin, np.bool_)
        undecodable, counts = {}, _Counts(channels)
        for row, image in enumerate(images, begin):
            if isinstance(image, str):
                undecodable[row] = image
            else:
                hashes[row - begin], plain[row - begin] = image.hash, image.traits.is_plain_jpeg
                counts.add(image.traits, rows, row)
                if pixels is not None:
                    pixels[row] = image.pixels
            progress.reached(row + 1)
        return cls(hashes, plain, undecodable, counts.to_json())

    def write(self, file: Path) -> None:
        facts = json.dumps({"undecodable": list(self.undecodable.items()), "counts": self.counts})
        with run_paths.replacing(file) as partial, partial.open("wb") as stream:
            np.savez(stream, hashes=self.hashes, plain=self.plain, facts=np.frombuffer(facts.encode(), np.uint8))
            stream.flush()
            os.fsync(stream.fileno())

    @classmethod
    def read(cls, file: Path) -> _Chunk | None:
        """The chunk that `write` has written; None if there is none, or it is damaged."""
        try:
            with np.load(file) as stored:
                facts = json.loads(stored["facts"].tobytes())
                return cls(stored["hashes"], stored["plain"], dict(facts["undecodable"]), facts["counts"])
        except (OSError, ValueError, LookupError, zipfile.BadZipFile):
            return None


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
            (traits.pages, "images of several pages", "the first page is used"),
            (traits.profile, "images with a colour profile that is not sRGB", "the profile is not applied"),
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

    def to_json(self) -> dict[str, Any]:
        return {"modes": self._modes, "sizes": self._sizes, "notes": self._notes.to_json()}

    def merge(self, counts: Mapping[str, Any]) -> None:
        """Add the counts of a chunk, as `to_json` returns them."""
        self._modes.update(counts["modes"])
        self._sizes.update(counts["sizes"])
        self._notes.add(SourceSummary.from_json(counts["notes"]))

    def write(self, summary: SourceSummary) -> None:
        self._notes.modes = dict(self._modes.most_common())
        common = self._sizes.most_common(_SIZES)
        self._notes.sizes = dict(common)
        if others := self._sizes.total() - sum(count for _, count in common):
            self._notes.sizes["others"] = others
        summary.add(self._notes)
