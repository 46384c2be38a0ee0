from __future__ import annotations

import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bellwether.trainer.config.errors import ConfigError, ConfigErrors
from bellwether.trainer.data import image_decoding, image_inspection, image_preparation, image_samples, load
from bellwether.trainer.data.image_decoding import Undecodable
from bellwether.trainer.data.images import ImageData
from bellwether.trainer.data.loader import evaluation_batches, train_batches

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes of ten single-colour pictures of different sizes and formats."""
    for name, colour in COLOURS.items():
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for index in range(10):
            size = (20 + index, 30 - index)
            Image.new("RGB", size, colour).save(folder / f"{index}.{'png' if index % 2 else 'JPEG'}")
    return tmp_path / "pictures"


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., ImageData]:
    def make(**keys: Any) -> ImageData:
        defaults = {"cache": str(tmp_path / "cache"), "size": 16, "validation_share": 0.2, "workers": 0}
        return ImageData(kind="images", **{**defaults, **keys})

    return make


@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
@pytest.mark.parametrize("mean, std", [([0.5], [0.5]), ([0.5, 0.4, 0.3], [0.5, 0.4, 0.3])])
def test_folder_per_class(
    pictures: Path, config: Callable[..., ImageData], crop: str, mean: list[float], std: list[float]
) -> None:
    data = load(config(source=str(pictures), crop=crop, mean=mean, std=std))
    assert (data.classes, data.channels, data.labels) == (3, len(mean), ["blue", "green", "red"])
    assert len(data.train) == 24
    assert len(data.validation) == 6
    for samples in (data.train, data.validation):
        batch = samples.batch(range(len(samples)), range(len(samples)))
        pixels, labels = batch["pixel_values"], batch["labels"]
        assert pixels.shape == (len(samples), len(mean), 16, 16)
        assert pixels.dtype == torch.float32
        assert pixels.is_contiguous()
        assert labels.dtype == torch.int64
        for image, label in zip(pixels, labels, strict=True):
            colour = COLOURS[data.labels[label]]
            grey = [0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]]
            expected = (torch.tensor(grey if len(mean) == 1 else colour) / 255 - torch.tensor(mean)) / torch.tensor(std)
            # JPEG and rounding change a colour by a few of 255 levels; the centre has no padding.
            assert (image[:, 4:-4, 4:-4] - expected[:, None, None]).abs().max() < 0.05


@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
def test_augmentation_is_a_function_of_the_key_and_only_in_training(
    config: Callable[..., ImageData], crop: str
) -> None:
    data = load(config(crop=crop))
    rows = list(range(20))
    for samples, random in ((data.train, True), (data.validation, False)):
        a, b, c = (samples.batch(rows, keys)["pixel_values"] for keys in (range(20), range(20), range(20, 40)))
        assert torch.equal(a, b)
        assert torch.equal(a, c) != random


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_augmented_views_are_a_function_of_seed_and_row(config: Callable[..., ImageData], crop: str) -> None:
    validation = load(config(crop=crop, mean=[0.3], std=[0.3])).validation

    def views_of(seed: int, world_size: int) -> torch.Tensor:
        """The views of all held-out rows, in the order of the rows."""
        parts = [
            list(
                evaluation_batches(
                    image_samples.AugmentedViews(validation, 3, seed),
                    limit=20,
                    micro=4,
                    rank=r,
                    world_size=world_size,
                    workers=0,
                )
            )
            for r in range(world_size)
        ]
        whole = [batch for step in zip(*parts, strict=True) for batch in step]
        return torch.cat([batch["pixel_values"][batch["weight"] > 0] for batch in whole])

    views = views_of(1, 1)
    assert views.shape == (20, 4, 1, 16, 16)
    assert torch.equal(views, views_of(1, 2))
    rows = np.arange(20) * len(validation) // 20
    assert torch.equal(views[:, 0], validation.batch(rows, rows)["pixel_values"])
    assert not torch.equal(views[:, 1:], views_of(2, 1)[:, 1:])
    for one, other in ((0, 1), (1, 2), (2, 3)):
        assert not torch.equal(views[:, one], views[:, other])


def test_small_images_are_decoded_once(config: Callable[..., ImageData], monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    real = image_decoding.decode
    monkeypatch.setattr(image_inspection, "decode", lambda *a, **k: (decoded.append(1), real(*a, **k))[1])
    samples = load(config()).train
    first = samples.batch([1, 2], [3, 4])
    assert len(pickle.dumps(samples)) < 20_000, "the pickle for the workers contains labels but no pixels"
    assert len(decoded) == 1797
    again = load(config(mean=[0.1, 0.2, 0.3], crop="none"))
    again.train.batch([1, 2], [3, 4])
    assert len(decoded) == 1797, "neither crop nor normalisation needs another preparation"
    assert torch.equal(load(config()).train.batch([1, 2], [3, 4])["pixel_values"], first["pixel_values"])
    for keys in ({"size": 8}, {"mean": [0.5], "std": [0.5]}, {"validation_share": 0.1}):
        decoded.clear()
        load(config(**keys))
        assert len(decoded) == 1797, keys


def test_large_images_are_decoded_for_each_batch(
    pictures: Path, config: Callable[..., ImageData], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stored = load(config(source=str(pictures)))
    monkeypatch.setattr(image_preparation, "DECODED_LIMIT", 10)
    encoded = load(config(source=str(pictures), cache=str(tmp_path / "other")))
    rows = range(24)
    for a, b in ((stored.train, encoded.train), (stored.validation, encoded.validation)):
        some = range(len(a))
        assert torch.equal(a.batch(some, some)["pixel_values"], b.batch(some, some)["pixel_values"])
        assert torch.equal(a.batch(some, some)["labels"], b.batch(some, some)["labels"])
    copy = pickle.loads(pickle.dumps(encoded.train))
    assert torch.equal(copy.batch(rows, rows)["pixel_values"], stored.train.batch(rows, rows)["pixel_values"])


@pytest.mark.process
def test_workers_decode_the_same_batches(pictures: Path, config: Callable[..., ImageData]) -> None:
    samples = load(config(source=str(pictures), crop="resized")).train
    found = [
        list(
            train_batches(
                samples,
                seed=1,
                start=3,
                steps=2,
                global_batch=8,
                micro=4,
                accumulation=2,
                rank=0,
                world_size=1,
                workers=w,
            )
        )
        for w in (0, 1)
    ]
    for a, b in zip(*found, strict=True):
        assert torch.equal(a["pixel_values"], b["pixel_values"])
        assert torch.equal(a["labels"], b["labels"])


def test_digits(config: Callable[..., ImageData]) -> None:
    from sklearn.datasets import load_digits

    data = load(config(size=8, crop="none", flip=False, mean=[0.0], std=[1.0], validation_share=0.1))
    assert data.classes == 10
    assert len(data.train) == 1617
    assert len(data.validation) == 180
    batch = data.train.batch(range(1617), range(1617))
    found = load_digits()
    rows = {
        (pixels / 16 * 255).round().astype(int).tobytes(): label
        for pixels, label in zip(found.images, found.target, strict=True)
    }
    for image, label in zip(batch["pixel_values"], batch["labels"], strict=True):
        assert rows[(image[0] * 255).round().to(torch.int64).numpy().tobytes()] == label


def parquet(path: Path, labels: list[Any], names: list[str] | None = None, shade: int = 0) -> Path:
    import datasets

    label: Any = (
        datasets.ClassLabel(names=names)
        if names
        else datasets.Value("string" if isinstance(labels[0], str) else "int64")
    )
    features = datasets.Features({"img": datasets.Image(), "fine": label})
    rows = {"img": [Image.new("RGB", (8, 8), (i, shade, 0)) for i in range(len(labels))], "fine": labels}
    datasets.Dataset.from_dict(rows, features).to_parquet(path)
    return path


@pytest.mark.parametrize("labels, held_out, names, classes", [
    ([0, 1, 2] * 4, [2, 0], ["a", "b", "c"], ["a", "b", "c"]),
    ([0, 1, 3] * 4, [3, 0], None, ["0", "1", "2", "3"]),
    (["x", "b"] * 4, ["x"], None, ["b", "x"]),
])  # fmt: skip
def test_parquet_labels(
    tmp_path: Path,
    config: Callable[..., ImageData],
    labels: list[Any],
    held_out: list[Any],
    names: list[str] | None,
    classes: list[str],
) -> None:
    train, validation = (
        parquet(tmp_path / f"{part}.parquet", values, names, shade)
        for part, values, shade in (("t", labels, 0), ("v", held_out, 1))
    )
    data = load(
        config(
            source=str(train),
            validation=str(validation),
            image_column="img",
            label_column="fine",
            crop="none",
            flip=False,
            allow_empty_classes=True,
        )
    )
    assert data.labels == classes
    assert len(data.train) == len(labels)
    assert len(data.validation) == len(held_out)
    for samples, expected_labels in ((data.train, labels), (data.validation, held_out)):
        found = samples.batch(range(len(expected_labels)), range(len(expected_labels)))["labels"].tolist()
        assert found == [label if names else classes.index(str(label)) for label in expected_labels]


def test_errors_name_the_key_to_change(tmp_path: Path, pictures: Path, config: Callable[..., ImageData]) -> None:
    train = parquet(tmp_path / "t.parquet", ["a", "b"] * 4)
    columns = {"image_column": "img", "label_column": "fine"}
    (tmp_path / "flat").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "flat" / "a.png")
    (tmp_path / "a.txt").write_text("text")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"source": str(train)}, "data.image_column: 'image': no such column in data.source; it has: img, fine"),
        ({"source": str(train), "image_column": "img"}, "data.label_column: 'label': no such column"),
        (
            {"source": str(train), "image_column": "img", "label_column": "img"},
            "data.label_column: 'img': holds no classes",
        ),
        (
            {"source": str(parquet(tmp_path / "u.parquet", [-1, 0])), **columns},
            "has the label -1 in data.source; labels start at 0",
        ),
        ({"source": str(parquet(tmp_path / "n.parquet", ["a", None])), **columns}, "'fine': is empty in 1 rows"),
        (
            {"source": str(train), "validation": str(parquet(tmp_path / "v.parquet", ["c"])), **columns},
            "labels that data.source does not have: c",
        ),
        ({"source": str(tmp_path / "flat")}, "a.png is not in a folder/class/image layout"),
        ({"source": str(tmp_path / "flat" / "*.png")}, "all images are of one class, 'flat'"),
        ({"source": str(tmp_path / "a.txt")}, "is text, but data.kind is images"),
    ]
    for keys, message in cases:
        with pytest.raises(ConfigError, match=message):
            load(config(**keys))
    (pictures / "red" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ConfigErrors, match=r"broken.png': cannot be decoded"):
        load(config(source=str(pictures)))


@pytest.mark.parametrize("values, suffix, expected", [
    (np.array([[0, 257, 32896, 65535]], dtype=np.uint16), "png", [0, 1, 128, 255]),
    (np.array([[0, 257, 32896, 65535]], dtype=np.uint16), "tiff", [0, 1, 128, 255]),
    (np.array([[0, 257, 32896, 65535]], dtype=np.int32), "tiff", [0, 1, 128, 255]),
    (np.array([[0, 65536]], dtype=np.int32), "tiff", "values of mode I that"),
    (np.array([[0, -1]], dtype=np.int32), "tiff", "values of mode I that"),
    (np.array([[0, 0.5]], dtype=np.float32), "tiff", "values of mode F that"),
])  # fmt: skip
def test_grey_of_more_than_8_bits(values: Any, suffix: str, expected: list[int] | str) -> None:
    file = io.BytesIO()
    Image.fromarray(values).save(file, suffix)
    for channels in (1, 3):
        if isinstance(expected, str):
            with pytest.raises(Undecodable, match=expected):
                image_decoding.decode(file.getvalue(), channels)
        else:
            image, _ = image_decoding.decode(file.getvalue(), channels)
            assert np.asarray(image).reshape(4, channels).tolist() == [[grey] * channels for grey in expected]


def test_tiff_of_12_bits(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((1, 4), dtype=np.uint16)).save(tmp_path / "a.tiff")
    packed = (tmp_path / "a.tiff").read_bytes()
    tag = struct.pack("<HHI", 258, 3, 1)  # BitsPerSample, of one short
    changed = packed.replace(tag + b"\x10", tag + b"\x0c")
    assert changed != packed
    content = bytes.fromhex("000 010 800 fff".replace(" ", ""))  # 4 values of 12 bits
    found, _ = image_decoding.decode(changed[:-8] + content + b"\0\0", 1)
    assert np.asarray(found).tolist() == [[0, 1, 128, 255]]


def test_cifar(shared_data: Path, config: Callable[..., ImageData]) -> None:
    data = load(config(
        source=str(shared_data / "cifar10/test-*.parquet"), image_column="img", size=32, crop="none", flip=False,
        mean=[0.0] * 3, std=[1.0] * 3, validation_share=0.1,
    ))  # fmt: skip
    assert data.labels is not None
    assert data.labels[:3] == ["airplane", "automobile", "bird"]
    assert len(data.train) == 9000
    assert len(data.validation) == 1000
    pixels = data.train.batch(range(9000), range(9000))["pixel_values"]
    # The test set's own channel means are 0.494, 0.485, 0.450.
    np.testing.assert_allclose(pixels.mean(dim=(0, 2, 3)), [0.494, 0.485, 0.450], atol=0.005)


def test_held_out_images_have_their_own_size_and_crop(pictures: Path, config: Callable[..., ImageData]) -> None:
    """A picture whose central half is white: the crop decides what is seen."""
    for file in sorted((pictures / "red").iterdir()):
        image = Image.new("RGB", (40, 80))
        image.paste((255, 255, 255), (10, 30, 30, 50))
        image.save(file.with_suffix(".png"))
        if file.suffix != ".png":
            file.unlink()

    def red(**keys: Any) -> Any:
        data = load(config(source=str(pictures), crop="resized", mean=[0.0], std=[1.0], max_overlap=1.0, **keys))
        row = int(np.flatnonzero(data.validation.labels == 2)[0])
        assert data.train.batch([0], [0])["pixel_values"].shape[2:] == (16, 16)
        return data.validation.batch([row], [0])["pixel_values"][0, 0]

    usual, half, whole = red(), red(test_size=24, test_crop=0.5), red(test_crop=1.0)
    assert usual.shape == whole.shape == (16, 16)
    assert half.shape == (24, 24)
    assert half[2:-2, 2:-2].min() == 1  # Pillow's antialiasing takes a little from outside of the crop
    assert whole.mean() == pytest.approx(0.25, abs=0.01)
    assert usual.mean() == pytest.approx((0.5 / 0.875) ** 2, abs=0.02)


def test_views_for_test_time_augmentation_are_only_cropped_and_flipped(config: Callable[..., ImageData]) -> None:
    keys: dict[str, Any] = {"crop": "resized", "size": 8, "test_size": 12, "mean": [0.3], "std": [0.3]}
    strong = {"randaugment": 9, "erase": 1.0, "mixup": 1.0, "cutmix": 1.0}
    found, plain = (
        image_samples.AugmentedViews(load(config(**keys, **extra)).validation, 3, 1).batch(range(5), range(5))  # type: ignore[arg-type]
        for extra in (strong, {})
    )
    assert found["pixel_values"].shape == (5, 4, 1, 12, 12)
    assert found.keys() == plain.keys()
    assert torch.equal(found["pixel_values"], plain["pixel_values"])


class _Killed(BaseException):
    """Stands for a signal: nothing of ours catches it."""


@pytest.mark.parametrize("crop", ["none", "resized"])
def test_check_of_images_goes_on_where_it_was_ended(
    tmp_path: Path, crop: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    for index in range(24):
        file = tmp_path / "images" / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (9 + index, 12, 3), dtype=np.uint8)).save(file)
    (tmp_path / "images/a/20.png").write_bytes(b"none")
    keys = {"kind": "images", "source": str(tmp_path / "images"), "size": 8, "crop": crop, "on_error": "skip"}
    whole = ImageData(**keys, cache=str(tmp_path / "whole")).load()

    monkeypatch.setattr(image_inspection, "CHUNK", 5)
    seen: list[str] = []

    def counted(data: bytes, channels: int, name: str, header_only: bool) -> Any:
        seen.append(name)
        if len(seen) == 13:
            raise _Killed
        return decode(data, channels, name, header_only)

    decode = image_inspection.decode
    monkeypatch.setattr(image_inspection, "decode", counted)
    config = ImageData(**keys, cache=str(tmp_path / "halves"))
    with pytest.raises(_Killed):
        config.load()
    monkeypatch.setattr(image_inspection, "decode", decode)
    first = set(seen)
    assert len(first) < 24
    again: list[str] = []
    monkeypatch.setattr(
        image_inspection, "decode", lambda data, channels, name, header_only: again.append(name) or decode(data, channels, name, header_only)
    )  # fmt: skip
    with caplog.at_level("INFO"):
        found = config.load()
    assert len(again) == 24 - 10  # two chunks of 5 were complete
    assert "checked 24 images, 10 of them before" in caplog.text
    assert _without_places(found.summary) == _without_places(whole.summary)
    assert found.fingerprint == whole.fingerprint
    for ours, theirs in ((found.train, whole.train), (found.validation, whole.validation)):
        rows = np.arange(len(theirs))
        for key, value in theirs.batch(rows, rows).items():
            assert value.equal(ours.batch(rows, rows)[key]), key
    assert not list((tmp_path / "halves").rglob("checked"))


def _without_places(summary: Any) -> dict[str, Any]:
    """A summary without the paths of its cache."""
    found: dict[str, Any] = summary.to_json()
    for finding in found["findings"]:
        finding.update(done="", examples=[])
    return found


def test_image_that_was_replaced_after_it_was_prepared_is_named(tmp_path: Path) -> None:
    """Also where size and time of the file are the same."""
    rng = np.random.default_rng(0)
    for index in range(10):
        file = tmp_path / "images" / "ab"[index % 2] / f"{index}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(file)
    config = ImageData(
        kind="images", source=str(tmp_path / "images"), size=8, crop="resized", cache=str(tmp_path / "cache")
    )
    dataset = config.load()
    rows = np.arange(len(dataset.train))
    dataset.train.batch(rows, rows)
    changed = tmp_path / "images/b/3.bmp"
    before = changed.stat()
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ConfigError, match=r"3\.bmp.*is another image than when the data were prepared"):
        dataset.train.batch(rows, rows), dataset.validation.batch([0], [0])
