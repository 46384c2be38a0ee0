"""A smaller copy of images: what a run reads from it, a continued copy, and what is refused."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bellwether import cli
from bellwether.trainer.config import load
from bellwether.trainer.data import image_packing, image_samples
from tests.killed import at_each_write

CLASSES = ("cat", "dog")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """12 photographs of noise and gradients, some with a short side below 64, one with an orientation, one PNG."""
    generator = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / "source" / CLASSES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        height, width = (48, 60) if number < 3 else (160 + 8 * number, 120)
        base = np.linspace(0, 255, height * width).reshape(height, width, 1)
        pixels = np.clip(base + generator.normal(0, 10, (height, width, 3)), 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels)
        if number == 11:
            image.save(folder / f"{number:02d}.png")
            continue
        exif = Image.Exif()
        if number == 4:
            exif[0x0112] = 6
        image.save(folder / f"{number:02d}.jpg", quality=92, exif=exif)
    return tmp_path / "source"


def config_file(folder: Path, source: Path, **data: Any) -> Path:
    file = folder / "config.yaml"
    raw = {
        "name": "x", "duration": "1 epochs", "model": {"kind": "resnet", "depth": 18}, "batch": {"global": 4, "micro": 4},
        "data": {"kind": "images", "source": str(source), "size": 32, "crop": "resized", "validation_share": 0.25,
                 "cache": str(folder / "cache"), **data},
        "optimizer": {"lr": 0.1},
    }  # fmt: skip
    file.write_text(json.dumps(raw))
    return file


def members(output: Path) -> dict[str, bytes]:
    found = {}
    for shard in sorted(output.rglob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                assert stream is not None
                found[f"{shard.parent.name}/{member.name}"] = stream.read()
    return found


def opened(file: Path) -> Any:
    config: Any = load(str(file), []).data
    return image_samples.open_prepared(config, image_samples.prepare(config))


def test_copy_holds_the_same_samples_smaller(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, output = config_file(tmp_path, images), tmp_path / "packed"
    assert cli.main(["prepare", str(file), "--short-side", "64", "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "packed 12 images" in out
    assert f"data.source={output / 'train'} data.validation={output / 'validation'}" in out
    copied = members(output)
    sizes = sorted(min(Image.open(io.BytesIO(data)).size) for data in copied.values())
    assert sizes == [48] * 3 + [64] * 9
    # Small plain JPEGs keep their bytes.
    small = {path.read_bytes() for path in images.rglob("0[0-2].jpg")}
    assert small <= set(copied.values())
    before = opened(file)
    other = tmp_path / "other"
    other.mkdir()
    after = opened(config_file(other, output / "train", validation=str(output / "validation")))
    assert (len(after.train), len(after.validation)) == (len(before.train), len(before.validation)) == (9, 3)
    assert after.labels == before.labels == list(CLASSES)
    # The same samples, in the order of classes instead of files: the central crops agree to the loss of JPEG and of resizing twice.
    for split in ("validation", "train"):
        a, b = getattr(before, split), getattr(after, split)
        a.train = b.train = False
        rows = np.arange(len(a))
        first, second = (x.worker_batch(rows, rows) for x in (a, b))
        for label in (0, 1):
            mine, theirs = (x["pixels"][x["labels"] == label].float() for x in (first, second))
            assert mine.shape == theirs.shape
            for picture in mine:
                assert min((picture - one).abs().mean() for one in theirs) < 6


def test_killed_copy_is_continued_and_is_the_same(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(image_packing, "_SHARD", 4)
    file = str(config_file(tmp_path, images))
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for output in (whole, halves):
        assert cli.main(["prepare", file, "--short-side", "64", "--output", str(output)]) == 0
    (halves / "train" / "00001.tar").unlink()  # not yet written when it was killed
    before = {path: path.stat().st_mtime_ns for path in halves.rglob("*.tar")}
    capsys.readouterr()
    assert cli.main(["prepare", file, "--short-side", "64", "--output", str(halves)]) == 0
    assert "3 shards were there already" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert members(halves) == members(whole)
    assert [p.name for p in halves.rglob("*") if "partial" in p.name] == []


def test_numbered_classes_keep_their_numbers(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    names = [str(label) for label in range(11)]
    pictures = [Image.new("RGB", (80, 80), (20 * label, 100, 50)) for label in range(11)] * 2
    table = Dataset.from_dict(
        {"image": pictures, "label": list(range(11)) * 2},
        features=Features({"image": ImageFeature(), "label": ClassLabel(names=names)}),
    )
    (tmp_path / "table").mkdir()
    table.to_parquet(str(tmp_path / "table" / "a.parquet"))
    file, output = config_file(tmp_path, tmp_path / "table"), tmp_path / "packed"
    assert cli.main(["prepare", str(file), "--short-side", "40", "--output", str(output)]) == 0
    other = tmp_path / "other"
    other.mkdir()
    dataset = opened(config_file(other, output / "train", validation=str(output / "validation")))
    batch = dataset.train.worker_batch(np.arange(len(dataset.train)), np.arange(len(dataset.train)))
    assert [round(float(p[..., 0].float().mean()) / 20) for p in batch["pixels"]] == batch["labels"].tolist()


@pytest.mark.parametrize(
    ("arguments", "data", "message"),
    [
        (["--short-side", "64"], {}, "--output: is needed for a copy of images"),
        (["--output", "x"], {}, "--short-side: is needed for a copy of images"),
        (["--short-side", "64", "--output", "x", "--quality", "101"], {}, "--quality: 101: is above 100"),
        (["--short-side", "64", "--output", "x"], {"crop": "pad"}, "data.crop: 'pad': resizes each image to data.size"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    arguments: list[str], data: dict[str, Any], message: str, images: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(["prepare", str(config_file(tmp_path, images, **data)), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_nothing_is_written_over_another_folder(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = str(config_file(tmp_path, images)), tmp_path / "packed"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    assert cli.main(["prepare", file, "--short-side", "64", "--output", str(output)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert os.listdir(output) == ["thesis.tex"]
    for side, status in (("64", 0), ("80", 2)):
        assert cli.main(["prepare", file, "--short-side", side, "--output", str(tmp_path / "new")]) == status
    assert "holds a copy with another short_side" in capsys.readouterr().err
    for text in ("{", "[]"):
        (tmp_path / "new" / "packed.json").write_text(text)
        assert cli.main(["prepare", file, "--short-side", "64", "--output", str(tmp_path / "new")]) == 2
        assert "its packed.json cannot be read" in capsys.readouterr().err
    (tmp_path / "notes").write_text("my notes")
    for place in (tmp_path / "notes", tmp_path / "notes" / "packed"):
        assert cli.main(["prepare", file, "--short-side", "64", "--output", str(place)]) == 1
        assert f"bellwether: {place}: " in capsys.readouterr().err
    assert (tmp_path / "notes").read_text() == "my notes"


@pytest.mark.parametrize("written", ["source", "source/**/*.jpg", "source/../source"])
def test_copy_is_not_written_into_the_images(
    written: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run on the images would find the copy among them, and refuse the mixture."""
    file = str(config_file(tmp_path, tmp_path / written))
    for output in (images, images / "packed"):
        assert cli.main(["prepare", file, "--short-side", "64", "--output", str(output)]) == 2
        assert "is in the images of data.source" in capsys.readouterr().err
    assert sorted(os.listdir(images)) == list(CLASSES)


def test_full_disk_is_named_and_the_copy_continues(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = str(config_file(tmp_path, images)), str(tmp_path / "packed")
    command = ["prepare", file, "--short-side", "64", "--output", output]
    assert cli.main([*command[:-1], str(tmp_path / "whole")]) == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        assert cli.main(command) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err
    assert f"bellwether: {tmp_path / 'packed' / 'train' / '00000.tar'}: File too large; once the disk" in error
    assert "the same command goes on" in error
    assert cli.main(command) == 0
    assert members(tmp_path / "packed") == members(tmp_path / "whole")


def test_copy_that_was_killed_at_any_write_continues(images: Path, tmp_path: Path) -> None:
    config: Any = load(str(config_file(tmp_path, images)), []).data
    output = tmp_path / "packed"

    def pack() -> None:
        image_packing.pack(config, 64, 80, output, threads=1)

    contents, killed = [], []
    for event in at_each_write(output, pack):
        killed.append(event)
        pack()
        contents.append(members(output))
        shutil.rmtree(output)
    pack()
    assert len(killed) >= 8
    assert all(content == members(output) for content in contents)
