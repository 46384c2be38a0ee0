"""A smaller copy of labelled images: the short side reduced, encoded as JPEG again, packed into tar shards that a run reads as they are.

The copy is a data set of its own: its pixels are not those of the source, and a run on it is another run.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL

from bellwether.trainer import file_errors, run_paths
from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import image_decoding, image_samples
from bellwether.trainer.data.image_rows import ImageRows
from bellwether.trainer.data.transient import retrying

if TYPE_CHECKING:
    from bellwether.trainer.data.images import ImageData

log = logging.getLogger(__name__)

RECORD = "packed.json"  # in the folder of the copy: what it was made from, and how
_SHARD = 2000  # images
_PROGRESS = 10.0  # seconds


@dataclass
class Packed:
    """What was written: images, their bytes before and after, and shards that an earlier command had written."""

    images: int = 0
    before: int = 0
    after: int = 0
    found_shards: int = 0
    renumbered: bool = False  # classes: in the copy they are in the order of their names


def pack(config: ImageData, short_side: int, quality: int, output: Path, threads: int) -> Packed:
    """Write the copy to ``output/train`` and ``output/validation``, or continue it.

    Images whose short side is not above `short_side` keep their size, and plain JPEGs of them their bytes.

    Raises:
        ConfigError: if the images are not cropped from their full size, or `output` holds something else.
    """
    if config.crop != "resized":
        problem = "resizes each image to data.size when it is prepared: a smaller copy would change nothing"
        raise ConfigError("data.crop", config.crop, problem, "write data.crop=resized, or leave --short-side out")
    _check_outside(config, output)
    facts = image_samples.prepare(config)
    dataset = image_samples.open_prepared(config, facts)
    names = [str(name) for name in dataset.labels or []]
    if wrong := next((name for name in names if "/" in name or name.startswith(".")), None):
        raise ConfigError(
            "data.source", config.source, f"{wrong!r} cannot be the name of a folder", "rename this class"
        )
    record = {
        "source": Path(facts["entry"]).name, "short_side": short_side, "quality": quality, "pillow": PIL.__version__,
        "images_per_shard": _SHARD, "classes": names,
    }  # fmt: skip
    _claim(output, record)
    packed, began = Packed(renumbered=not _is_numbered(names) and names != sorted(names)), time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        for split in (dataset.train, dataset.validation):
            assert isinstance(split, image_samples.ImageSamples)
            folder = output / ("train" if split.train else "validation")
            folder.mkdir(exist_ok=True)
            _write_split(split, names, folder, _Copier(config, short_side, quality, split), pool, packed)
    log.info("packed %s images in %.0f s", f"{packed.images:,}", time.monotonic() - began)
    return packed


def _check_outside(config: ImageData, output: Path) -> None:
    """Refuse to write into the images that are copied: they would then be other images.

    Raises:
        ConfigError: naming them.
    """
    for key in ("source", "validation"):
        name = getattr(config, key)
        if not isinstance(name, str):
            continue
        folder = Path(name.partition("**")[0]).expanduser().resolve()
        if folder.is_dir() and output.resolve().is_relative_to(folder):
            problem = f"is in the images of data.{key}, to which the copy would be added"
            raise ConfigError("--output", str(output), problem, "name a folder outside of them")


def _is_numbered(names: list[str]) -> bool:
    return names == [str(label) for label in range(len(names))]


def _claim(output: Path, record: dict[str, Any]) -> None:
    """Make the folder, or check that it holds the beginning of the same copy."""
    file = output / RECORD
    found = run_paths.published_json(file, "--output")
    if found is None and output.is_dir() and not all(run_paths.is_partial(path, RECORD) for path in output.iterdir()):
        raise ConfigError("--output", str(output), "is not empty", "name a new folder")
    if found is not None and found != record:
        changed = ", ".join(key for key in record if record[key] != found.get(key))
        raise ConfigError("--output", str(output), f"holds a copy with another {changed}", "name a new folder")
    output.mkdir(parents=True, exist_ok=True)
    run_paths.publish(file, json.dumps(record, indent=1) + "\n")


def _write_split(
    split: image_samples.ImageSamples,
    names: list[str],
    folder: Path,
    copier: _Copier,
    pool: ThreadPoolExecutor,
    packed: Packed,
) -> None:
    total, reported, numbered = len(split), time.monotonic(), _is_numbered(names)
    for number, start in enumerate(range(0, total, _SHARD)):
        shard, numbers = folder / f"{number:05d}.tar", range(start, min(start + _SHARD, total))
        if shard.exists():  # shards are published whole
            packed.found_shards += 1
            continue
        with file_errors.naming(shard), run_paths.replacing(shard) as partial, tarfile.open(partial, "w") as tar:
            for index, (before, data) in zip(numbers, pool.map(copier, numbers), strict=True):
                label = int(split.labels[index])
                _add(tar, f"{names[label]}/{index:08d}.jpg", data)
                if numbered:  # names of folders would be sorted as text: 0, 1, 10, 2
                    _add(tar, f"{names[label]}/{index:08d}.cls", str(label).encode())
                packed.images, packed.before, packed.after = (
                    packed.images + 1,
                    packed.before + before,
                    packed.after + len(data),
                )
                if time.monotonic() - reported > _PROGRESS:
                    reported = time.monotonic()
                    log.info("%s: packed %s of %s images", folder, f"{index + 1:,}", f"{total:,}")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member without owner and time, so that the same images give the same shard."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@dataclass
class _Copier:
    """Reads an image and encodes it again; Pillow releases the interpreter lock meanwhile."""

    config: ImageData
    short_side: int
    quality: int
    split: image_samples.ImageSamples

    def __call__(self, index: int) -> tuple[int, bytes]:
        """Bytes of the source, and the copy."""
        rows, row = self.split.encoded, int(self.split.rows[index])
        assert rows is not None
        data = self._read(rows, row)
        image, traits = image_decoding.decode(data, self.config.channels)
        width, height = image.size
        share = self.short_side / min(width, height)
        if share >= 1 and traits.is_plain_jpeg:
            return len(data), data
        if share < 1:
            size = (max(1, round(width * share)), max(1, round(height * share)))
            image = image.resize(size, PIL.Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=self.quality)
        return len(data), stream.getvalue()

    def _read(self, rows: ImageRows, row: int) -> bytes:
        try:
            return retrying(self.config.retry, lambda: rows.read(row))
        except image_decoding.Undecodable as error:
            raise ConfigError(
                self.split.key, rows.name(row), f"cannot be read any more: {error}", "restore the file"
            ) from error


def describe(packed: Packed, output: Path, short_side: int, quality: int) -> Iterator[str]:
    """What the command prints."""
    if packed.found_shards:
        yield f"{packed.found_shards:,} shards were there already"
    yield f"packed {packed.images:,} images: {packed.before / 1e6:,.1f} MB became {packed.after / 1e6:,.1f} MB in {output}"
    yield f"this is a data set of its own: short side at most {short_side}, JPEG of quality {quality}. To train on it:"
    if packed.renumbered:
        yield "the classes of the copy are numbered in the order of their names, which is not that of the source"
    yield f"  data.source={output / 'train'} data.validation={output / 'validation'}"
