"""Batches of labelled images. `image_preparation` prepares the files that they are read from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import (
    Dataset,
    augment,
    finishing,
    image_decoding,
    image_preparation,
    jpeg,
    mixing,
    randaugment,
)
from bellwether.trainer.data.cache import prepared
from bellwether.trainer.data.finishing import Finisher
from bellwether.trainer.data.image_decoding import Undecodable
from bellwether.trainer.data.image_inspection import LIST, content_hash
from bellwether.trainer.data.image_rows import ImageRows, TableRows, mapped
from bellwether.trainer.data.image_sources import locate
from bellwether.trainer.data.sampling import Integers, fold_in, random_bits
from bellwether.trainer.data.summary import UNDECODABLE, DataSummary

if TYPE_CHECKING:
    from bellwether.trainer.data.images import ImageData

_REVISION = 3

_FINISHED = ("pixels", "mirror", "corner", "erase", "own_share", "box")

Rows = Sequence[int] | npt.NDArray[np.int64]


@dataclass
class ImageSamples:
    """The images of one split. See `bellwether.trainer.data.Samples`.

    Attributes:
        folder: the prepared split.
        source: the prepared part that its rows are of.
        train: whether to augment at random.
        encoded: the encoded images of `source`; None if it has the decoded ones.
        key: the config key that names the images, for errors.
    """

    folder: Path
    source: Path
    config: ImageData
    train: bool
    encoded: ImageRows | None = None
    key: str = "data.source"
    timed: ClassVar[Any] = nullcontext  # `bench` sets one that measures
    _pixels: npt.NDArray[np.uint8] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._finisher = Finisher(self.config.mean, self.config.std)
        self.labels, self.rows = mapped(self.folder / "labels.npy"), mapped(self.folder / "rows.npy")
        self._plain = mapped(self.source / "plain.npy")
        hashes = self.source / "hashes.npy"  # which versions before December 2026 did not store
        self._hashes = mapped(hashes) if hashes.exists() else None
        if self.encoded is None:
            self._pixels = mapped(self.source / "pixels.npy")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def worker_imports(self) -> tuple[str, ...]:
        """Modules that the fork server of the workers imports once for all of them."""
        return ("datasets",) if isinstance(self.encoded, TableRows) else ()

    @property
    def unit(self) -> int:
        """See `DataConfig.unit`."""
        return self.config.unit

    @property
    def retry(self) -> float:
        """How long a read of an image is repeated, in seconds."""
        return self.config.retry

    def __getstate__(self) -> dict[str, Any]:
        # Each worker maps the files itself.
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("_pixels", "_finisher", "_plain", "_hashes", "labels", "rows")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def batch(self, indices: Rows, keys: Rows) -> dict[str, Tensor]:
        return self.finish(self.worker_batch(indices, keys))

    def worker_batch(self, indices: Rows, keys: Rows) -> dict[str, Tensor]:
        """``pixels`` uint8 [B, S, S, C], ``labels`` int64 [B], of training images ``sample_keys`` int64 [B], and the choices that
        `finish` applies."""
        rows, own_keys = np.asarray(indices, dtype=np.int64), np.asarray(keys, dtype=np.int64)
        pixels, labels = self._images(self.rows[rows], own_keys), np.array(self.labels[rows])
        batch = {"pixels": torch.from_numpy(pixels), "labels": torch.from_numpy(labels)}
        return {**batch, **self._choices(own_keys)} if self.train else batch

    def _choices(self, keys: Integers) -> dict[str, Tensor]:
        config, size = self.config, self.config.size
        chosen: dict[str, npt.NDArray[Any]] = {"sample_keys": keys}
        if config.crop == "pad":
            chosen["corner"] = augment.pad_crop_corners(keys, size)
        if config.flip:
            chosen["mirror"] = augment.mirrored_half(keys)
        if config.erase:
            chosen["erase"] = mixing.erased(keys, size, config.erase)
        if config.mixup or config.cutmix:
            own, box = mixing.mixing(keys, size, config.mixup, config.cutmix, config.mix_share)
            areas = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
            chosen["own_share"], chosen["label_share"] = own, own - (areas / size**2).astype(np.float32)
            if config.cutmix:
                chosen["box"] = box
        return {name: torch.from_numpy(array) for name, array in chosen.items()}

    def finish(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch for the model, of one of `worker_batch`, on its device."""
        rest = {name: tensor for name, tensor in batch.items() if name not in _FINISHED}
        images = self._finisher(batch["pixels"], batch.get("mirror"), batch.get("corner"))
        if "erase" in batch:
            images = finishing.erase(images, batch["erase"])
        if "own_share" in batch:
            images = finishing.mix(images, batch["own_share"], batch.get("box"))
            rest["other_labels"] = finishing.other_of_pair(batch["labels"])
        return {"pixel_values": images, **rest}

    def _images(self, rows: Integers, keys: Integers) -> npt.NDArray[np.uint8]:
        """uint8 [B, S, S, C]."""
        if self.encoded is not None:
            images = [self._decoded(int(row), int(key)) for row, key in zip(rows, keys, strict=True)]
        else:
            assert self._pixels is not None
            if not self._randomly_changed:
                return np.asarray(self._pixels[rows])
            images = list(self._pixels[rows])
        if self._randomly_changed:
            with self.timed("randaugment"):
                images = [self._changed(image, int(key)) for image, key in zip(images, keys, strict=True)]
        return np.stack(images)

    @property
    def _randomly_changed(self) -> bool:
        return self.train and self.config.randaugment is not None

    def _changed(self, pixels: npt.NDArray[np.uint8], key: int) -> npt.NDArray[np.uint8]:
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        return np.asarray(randaugment.augmented(image, key, self.config)).reshape(pixels.shape)

    def _decoded(self, row: int, key: int) -> npt.NDArray[np.uint8]:
        assert self.encoded is not None
        try:
            with self.timed("read"):
                data = self.encoded.read(row)
                self._check(row, data)
            with self.timed("decode"):
                pixels = jpeg.decode(data) if self._is_fast(row) else None
                image = (
                    image_decoding.decode(data, self.config.channels)[0] if pixels is None else Image.fromarray(pixels)
                )
        except Undecodable as error:  # every image could be decoded when it was prepared
            problem = f"cannot be decoded any more: {error}"
            raise ConfigError(self.key, self.encoded.name(row), problem, "restore the file") from error
        with self.timed("crop and resize"):
            if not self.train or self.config.crop != "resized":
                return held_out_pixels(image, self.config)
            width, height = image.size
            box = augment.random_crop_box(width, height, key)
            if pixels is not None:
                return jpeg.resized_crop(pixels, self.config.size, box)
            return augment.resized(image, self.config.size, box)

    def _check(self, row: int, data: bytes) -> None:
        """Refuse an encoded image that is not the one that was prepared.

        Raises:
            ConfigError: with its name.
        """
        if self._hashes is not None and content_hash(data) != int(self._hashes[row]):
            assert self.encoded is not None
            problem = "is another image than when the data were prepared"
            raise ConfigError(
                self.key, self.encoded.name(row), problem, "restore it; or touch it, and prepare the data again"
            )

    def _is_fast(self, row: int) -> bool:
        """Whether the fast decoder is asked for, and gives Pillow's pixels for this image."""
        return self.config.decoder == "simplejpeg" and self.config.channels == 3 and bool(self._plain[row])


def held_out_pixels(image: Image.Image, config: ImageData) -> npt.NDArray[np.uint8]:
    """A decoded image as evaluation sees it, before it is normalized: uint8 [S, S, C]."""
    if config.crop != "resized":
        return augment.resized(image, config.size)
    return augment.resized(image, config.held_out_size, augment.central_crop_box(*image.size, config.test_crop))


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

    @property
    def retry(self) -> float:
        return self.plain.retry

    def batch(self, indices: Rows, keys: Rows) -> dict[str, Tensor]:
        """``keys`` are those of `evaluation_batches`, which are a function of the rows."""
        return self.finish(self.worker_batch(indices, keys))

    def worker_batch(self, indices: Rows, keys: Rows) -> dict[str, Tensor]:
        """As that of the plain images, and ``views``: a batch of all views, those of the first number first."""
        augmented = replace(self.plain, train=True, config=self.plain.config.only_cropped())
        mixed = np.asarray(keys, dtype=np.int64) ^ fold_in(self.seed, 0)
        view_keys = (random_bits(mixed, self.count) >> np.uint64(1)).astype(np.int64)
        views = augmented.worker_batch(np.tile(np.asarray(indices), self.count), view_keys.T.reshape(-1))
        named = {f"views.{name}": tensor for name, tensor in views.items()}
        return {**self.plain.worker_batch(indices, keys), **named}

    def finish(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        views = {name.removeprefix("views."): t for name, t in batch.items() if name.startswith("views.")}
        original = self.plain.finish({name: t for name, t in batch.items() if not name.startswith("views.")})
        pixels = original["pixel_values"]
        augmented = self.plain.finish(views)["pixel_values"].view(self.count, *pixels.shape)
        return {**original, "pixel_values": torch.stack([pixels, *augmented], dim=1)}


def prepare(config: ImageData) -> dict[str, Any]:
    """Prepares labelled images. See `bellwether.trainer.config.schema.data.DataConfig.prepare`."""
    source = locate(config)
    validation = locate(config, "data.validation") if config.validation is not None else None
    key = {
        "revision": _REVISION, "source": source.fingerprint, "columns": [config.image_column, config.label_column],
        "validation": config.validation_share if validation is None else validation.fingerprint,
        "channels": config.channels, "size": None if config.crop == "resized" else config.size,
    }  # fmt: skip

    entry = prepared(
        config.cache,
        "images",
        key,
        lambda folder: image_preparation.prepare(folder, config, source, validation),
        resumable=True,
    )
    summary = DataSummary.read(entry)
    summary.source.find_alike_classes()
    summary.source.add(source.listing)
    if validation is not None:
        summary.held_out["validation"].add(validation.listing)
    for part, (_, found) in zip(("source", "held_out"), summary.parts(), strict=False):
        for finding in found.findings:
            if finding.what == UNDECODABLE:
                finding.done = f"left out and listed in {entry / part / LIST}"
    places = {"source": source} if validation is None else {"source": source, "held_out": validation}
    rows = {
        part: None if image_preparation.is_decoded(entry / part) else image_preparation.place_of_rows(place)
        for part, place in places.items()
    }
    return {"entry": str(entry), "rows": rows, "summary": summary.to_json()}


def open_prepared(config: ImageData, facts: dict[str, Any]) -> Dataset:
    """The images that `prepare` has prepared."""
    entry = Path(facts["entry"])
    decoder = "" if config.decoder == "pillow" else f"-{jpeg.version()}"
    if image_preparation.is_decoded(entry / "source"):
        decoder = ""  # by Pillow, once
    names = json.loads((entry / "classes.json").read_text(encoding="utf-8"))

    def samples(split: str) -> ImageSamples:
        part = "source" if split == "train" or "held_out" not in facts["rows"] else "held_out"
        where = image_preparation.KEYS[part]
        place = facts["rows"][part]
        encoded = None if place is None else image_preparation.open_rows(entry / part, config, place, where)
        return ImageSamples(entry / split, entry / part, config, split == "train", encoded, where)

    summary = DataSummary.from_json(facts["summary"]) if "summary" in facts else None
    return Dataset(
        samples("train"), samples("validation"),
        classes=len(names), channels=config.channels, labels=names, fingerprint=entry.name + decoder, summary=summary,
    )  # fmt: skip
