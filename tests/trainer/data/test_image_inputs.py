"""Image folders, shards and tables as people have them, each with what has to come out. Where the tracker of another project
has the case, it is named."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bellwether.trainer.config.errors import ConfigError, ConfigErrors
from bellwether.trainer.data import Dataset, load
from bellwether.trainer.data.images import ImageData

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
COLOURS = {"cat": RED, "dog": BLUE}


def picture(
    colour: tuple[int, ...] = RED, size: tuple[int, int] = (16, 16), mode: str = "RGB", seed: int = 0
) -> Image.Image:
    """One colour, with a corner pixel by which the content of each picture differs."""
    image = Image.new(mode, size, colour if len(colour) > 1 else colour[0])
    if mode == "RGB" and min(size) > 1:
        image.putpixel((size[0] - 1, size[1] - 1), (seed % 256, seed // 256, 0))
    return image


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def write(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def base(folder: Path, count: int = 5) -> None:
    """Two classes of `count` pictures."""
    for number, (name, colour) in enumerate(COLOURS.items()):
        for index in range(count):
            write(folder / name / f"{index}.png", encoded(picture(colour, seed=number * 100 + index + 1)))


def shard(file: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def numbered(count: int = 5) -> list[tuple[str, bytes]]:
    """Members of a shard: a picture and its number for each of `count` pictures of two classes."""
    colours = list(COLOURS.values())
    pictures = [encoded(picture(colours[i % 2], seed=i + 1)) for i in range(2 * count)]
    return [m for i, content in enumerate(pictures) for m in ((f"{i}.png", content), (f"{i}.cls", str(i % 2).encode()))]


def table(file: Path, images: list[Any], labels: list[Any], names: list[str] | None = None, **options: Any) -> Path:
    import datasets

    label: Any = datasets.ClassLabel(names=names) if names else None
    features = datasets.Features({"image": datasets.Image(decode=False), "label": label}) if names else None
    rows = [{"bytes": image, "path": None} if image is not None else None for image in images]
    datasets.Dataset.from_dict({"image": rows, "label": labels}, features).to_parquet(file, **options)
    return file


def of_table(**options: Any) -> Callable[[Path], dict[str, Any]]:
    """A parquet file of ten pictures; `options` replace its columns or are passed on."""

    def build(folder: Path) -> dict[str, Any]:
        folder.mkdir()
        images = [encoded(picture(seed=i + 1)) for i in range(10)]
        for row, image in options.get("replaced", {}).items():
            images[row] = image
        labels = options.get("labels", [0, 1] * 5)
        more = {k: v for k, v in options.items() if k not in ("labels", "replaced")}
        return {"source": str(table(folder / "t.parquet", images, labels, **more))}

    return build


def beside(*files: tuple[str, bytes], **keys: Any) -> Callable[[Path], dict[str, Any]]:
    """The folder of `base` with more files."""

    def build(folder: Path) -> dict[str, Any]:
        base(folder)
        for name, content in files:
            write(folder / name, content)
        return {"source": str(folder), **keys}

    return build


def linked_class(folder: Path) -> dict[str, Any]:
    base(folder)
    for index in range(3):
        write(folder.parent / "elsewhere" / "real" / f"{index}.png", encoded(picture(GREEN, seed=index + 500)))
    (folder / "linked").symlink_to(folder.parent / "elsewhere" / "real")
    return {"source": str(folder)}


def linked_loop(folder: Path) -> dict[str, Any]:
    base(folder)
    (folder / "cat" / "again").symlink_to(folder)
    return {"source": str(folder)}


def dangling(folder: Path) -> dict[str, Any]:
    base(folder)
    (folder / "cat" / "gone.png").symlink_to(folder / "nowhere.png")
    return {"source": str(folder)}


def linked_file(folder: Path) -> dict[str, Any]:
    base(folder)
    (folder / "cat" / "link.png").symlink_to(write(folder.parent / "store" / "x.png", encoded(picture(seed=900))))
    return {"source": str(folder)}


def deeper(folder: Path) -> dict[str, Any]:
    base(folder / "flat")
    for name in COLOURS:
        shutil.copytree(folder / "flat" / name, folder / "deep" / name / "images")
    return {"source": str(folder / "deep")}


def splits(folder: Path) -> dict[str, Any]:
    for name in ("train", "val"):
        base(folder / name)
    return {"source": str(folder)}


def empty_class(folder: Path) -> dict[str, Any]:
    base(folder)
    (folder / "bird").mkdir()
    return {"source": str(folder)}


def shards(*extra: tuple[str, bytes], members: Callable[[], list[tuple[str, bytes]]] = numbered, cut: int = 0) -> Any:
    def build(folder: Path) -> dict[str, Any]:
        file = shard(folder / "a-000.tar", [*members(), *extra])
        if cut:
            os.truncate(file, cut)
        return {"source": str(folder)}

    return build


def by_folder() -> list[tuple[str, bytes]]:
    """Members without labels, whose names differ after the first dot alone."""
    return [
        (f"./{name}/22.{index}.JPEG", encoded(picture(colour, (16 + index, 16)), "JPEG"))
        for name, colour in COLOURS.items()
        for index in range(5)
    ]


def exif(orientation: Any, mode: str = "RGB", form: str = "JPEG") -> bytes:
    """Red at the left and blue at the right, with an orientation."""
    image = Image.new(mode, (32, 16), RED)
    image.paste(BLUE, (16, 0, 32, 16))
    header = Image.Exif()
    header[0x0112] = orientation
    return encoded(image, form, exif=header, quality=95)


def textual_orientation() -> bytes:
    """The orientation as ASCII in place of a number."""
    content = exif(6)
    changed = content.replace(struct.pack(">HHI", 0x0112, 3, 1), struct.pack(">HHI", 0x0112, 2, 2))
    changed = changed.replace(struct.pack("<HHI", 0x0112, 3, 1), struct.pack("<HHI", 0x0112, 2, 2))
    assert changed != content
    return changed


def jpeg(size: tuple[int, int] = (64, 64), **options: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    return encoded(Image.fromarray(noise), "JPEG", **options)


def frames(form: str) -> bytes:
    first, *more = (picture(colour) for colour in (GREEN, BLUE, RED))
    return encoded(first, form, save_all=True, append_images=more, lossless=True)


def bomb(width: int, height: int) -> bytes:
    """A BMP header that claims more pixels than the file has."""
    content = bytearray(encoded(picture(), "BMP"))
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def palette() -> bytes:
    """Half transparent: green, which is composited over white."""
    image = Image.new("P", (16, 16), 0)
    image.putpalette([*GREEN, *BLUE])
    return encoded(image, transparency=bytes([0, 255]))


def adobe_cmyk() -> bytes:
    return encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")  # red


@dataclass
class Case:
    """An input, and what a run gets of it.

    Attributes:
        build: writes the input to a folder, and returns keys of the config.
        error: regular expression of what is refused; None if nothing is.
        classes: images by class, the undecodable ones not counted; None: those of `base`.
        facts: attributes of the `SourceSummary`.
        findings: count by what was found.
        added: colour of the picture `added`; None if there is none.
        at: row and column, of 16, at which it has the colour.
    """

    build: Callable[[Path], dict[str, Any]]
    error: str | None = None
    classes: dict[str, int] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    findings: dict[str, int] = field(default_factory=dict)
    added: tuple[int, int, int] | None = None
    at: tuple[int, int] = (4, 4)


def added(content: bytes, suffix: str = "png", **case: Any) -> Case:
    """A picture `added` beside the cats of `base`."""
    keys = case.pop("keys", {})
    if "error" not in case:
        case.setdefault("classes", {"cat": 6, "dog": 5})
    return Case(beside((f"cat/added.{suffix}", content), **keys), **case)


def named(*names: str) -> Callable[[Path], dict[str, Any]]:
    """Class folders of these names with four pictures each."""

    def build(folder: Path) -> dict[str, Any]:
        for number, name in enumerate(names):
            for index in range(4):
                write(folder / name / f"{index}.png", encoded(picture(seed=50 * number + index)))
        return {"source": str(folder)}

    return build


def self_linked(folder: Path) -> dict[str, Any]:
    """A class folder, and an image, that are links to themselves."""
    base(folder)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "cat" / "loop.png").symlink_to(folder / "cat" / "loop.png")
    return {"source": str(folder), **SKIP}


def pipe(folder: Path) -> dict[str, Any]:
    base(folder)
    os.mkfifo(folder / "cat" / "pipe.png")
    return {"source": str(folder)}


def rare_class(folder: Path) -> dict[str, Any]:
    """Of eleven pictures in three classes one is trained on."""
    base(folder)
    write(folder / "rare" / "0.png", encoded(picture(seed=777)))
    return {"source": str(folder), "validation_share": 0.9}


def linked_members(folder: Path) -> dict[str, Any]:
    keys = shards()(folder)
    with tarfile.open(folder / "a-000.tar", "a") as archive:
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            info = tarfile.TarInfo("x.png")
            info.type, info.linkname = kind, "0.png"
            archive.addfile(info)
    return keys


def labelled(*labels: bytes) -> Any:
    """A shard of five pairs of an image and its label."""
    members = [
        member
        for index, label in enumerate(labels)
        for member in ((f"{index}.png", encoded(picture(seed=index))), (f"{index}.cls", label))
    ]
    return shards(members=lambda: members)


def profile(kind: str) -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes()


SKIP = {"on_error": "skip"}
FIVE = {"cat": 5, "dog": 5}
NUMBERED = {"0": 5, "1": 5}
CASES = {
    # Folders. pytorch/vision 79, 4925, 8297; huggingface/datasets 4015, 5098, 6853.
    "notebook checkpoints": Case(
        beside((".ipynb_checkpoints/0-checkpoint.png", b"x"), ("cat/.ipynb_checkpoints/1.png", b"x")),
        findings={"hidden folders": 2},
    ),
    "files of macOS and Windows": Case(
        beside((".DS_Store", b"x"), ("cat/._0.png", b"x"), ("cat/Thumbs.db", b"x"), ("__MACOSX/cat/._1.png", b"x")),
        facts={"files_ignored": {".DS_Store": 1, ".png": 1, ".db": 1}},
        findings={"hidden folders": 1},
    ),
    "other files beside images": Case(
        beside(("cat/labels.csv", b"a"), ("README.md", b"b")),
        facts={"files_ignored": {".csv": 1, ".md": 1}, "files_read": 10},
    ),
    "a linked class folder": Case(linked_class, classes={**FIVE, "linked": 3}),
    "a linked image": Case(linked_file, classes={"cat": 6, "dog": 5}),
    "a link to a folder around it": Case(linked_loop, error="data.source: .*again is a link to a folder"),
    "a link that leads nowhere": Case(dangling, error="gone.png': cannot be decoded: it is a link that leads nowhere"),
    "class/images/x.png": Case(deeper, findings={"images in folders below their class": 10}),
    "train and val as classes": Case(splits, error="its sub-folders train, val are splits, not classes"),
    "a class folder without images": Case(empty_class, error="1 of 3 classes have no images: bird"),
    "an image beside the class folders": Case(
        beside(("montage.png", encoded(picture()))), error="montage.png is not in a folder/class/image layout"
    ),
    "classes that differ in case": Case(
        beside(("Cat/0.png", encoded(picture(seed=77)))),
        classes={"Cat": 1, **FIVE},
        findings={"classes of nearly the same name": 1},
    ),
    # Files. pytorch/vision 138, 864.
    "a truncated JPEG": added(
        jpeg()[:-300], "jpg", error="added.jpg': cannot be decoded: OSError: image file is truncated"
    ),
    "a truncated JPEG, skipped": added(
        jpeg()[:-300], "jpg", keys=SKIP, classes=FIVE, facts={"undecodable": 1}, findings={"undecodable images": 1}
    ),
    "an empty file": added(b"", error="added.png': cannot be decoded: the file is empty"),
    "a page instead of an image": added(
        b"<html>404", "jpg", error="its content is no image that Pillow knows; it begins"
    ),
    "a pointer of Git LFS": added(b"version https://git-lfs.github.com/spec/v1\n", error="run git lfs pull"),
    "a PNG named .jpg": added(
        encoded(picture(GREEN)), "jpg", added=GREEN, findings={"images with the suffix of another format": 1}
    ),
    "suffixes in capitals": added(
        encoded(picture(GREEN), "JPEG", quality=95), "JpEg", added=GREEN, facts={"files_ignored": {}}
    ),
    # Orientation. huggingface/datasets 6252, 7668; tensorflow/datasets 3202.
    "EXIF orientation 6": added(exif(6), "jpg", added=RED, at=(4, 12), facts={"rotated": 1}),
    "EXIF orientation 3": added(exif(3), "jpg", added=BLUE, facts={"rotated": 1}),
    "EXIF orientation 1": added(exif(1), "jpg", added=BLUE, at=(4, 12), facts={"rotated": 0}),
    "an orientation that does not exist": added(exif(9), "jpg", added=RED, facts={"rotated": 0}),
    "an orientation that is text": added(textual_orientation(), "jpg", added=RED, facts={"rotated": 0}),
    "a turned TIFF": added(exif(3, form="TIFF"), "tiff", added=BLUE, facts={"rotated": 1}),
    # Modes. NVIDIA/DIGITS 85.
    "transparent RGBA": added(
        encoded(Image.new("RGBA", (16, 16), (0, 0, 0, 0))), added=WHITE, facts={"transparent": 1, "rotated": 0}
    ),
    "half transparent LA": added(
        encoded(Image.new("LA", (16, 16), (0, 128))), added=(127, 127, 127), facts={"transparent": 1}
    ),
    "an alpha channel that is opaque": added(
        encoded(Image.new("RGBA", (16, 16), (*GREEN, 255))), added=GREEN, facts={"transparent": 0}
    ),
    "a palette with transparency": added(
        palette(), added=WHITE, facts={"transparent": 1}, findings={"images of mode P": 1}
    ),
    "CMYK": added(adobe_cmyk(), "jpg", added=RED, findings={"images of mode CMYK": 1}),
    "black and white": added(encoded(Image.new("1", (16, 16), 1)), added=WHITE, findings={"images of mode 1": 1}),
    "16-bit grey": added(
        encoded(Image.fromarray(np.full((16, 16), 32896, np.uint16))),
        added=(128,) * 3,
        findings={"images of mode I;16": 1},
    ),
    "an animated GIF": added(frames("GIF"), "gif", added=GREEN, findings={"animated images": 1}),
    "an animated WebP": added(frames("WEBP"), "webp", added=GREEN, findings={"animated images": 1}),
    "one pixel": added(
        encoded(Image.new("RGB", (1, 1), GREEN)), added=GREEN, findings={"images of less than 8 pixels in a side": 1}
    ),
    "a decompression bomb": added(bomb(20_000, 20_000), "bmp", error="it claims 20,000 x 20,000 pixels, more than"),
    # Tables.
    "a corrupt image in parquet": Case(
        of_table(replaced={7: jpeg()[:-300]}, batch_size=4), error=r"t.parquet, row group 1, row 3': cannot be decoded"
    ),
    "an empty row in parquet": Case(
        of_table(replaced={2: None}), error="row 2': cannot be decoded: its row holds neither"
    ),
    "a class of the label range without images": Case(
        of_table(names=["a", "b", "c"]), error="1 of 3 classes have no images: c"
    ),
    "labels from 1": Case(of_table(labels=[1, 2] * 5), error="1 of 3 classes have no images: 0"),
    "labels that are identifiers": Case(
        of_table(labels=[10**9, 5] * 5), error="1,000,000,000 in data.source: these are no numb"
    ),
    "labels that are text": Case(of_table(labels=["b", "a"] * 5), classes={"a": 5, "b": 5}),
    # Shards. webdataset/webdataset 157; huggingface/datasets 7144; ray-project/ray 65044.
    "shards with .cls": Case(shards(), classes=NUMBERED, facts={"files_read": 1}),
    "shards by folder, with dots in names": Case(shards(members=by_folder)),
    "shards with .json": Case(
        shards(
            *((f"x{i}.json", json.dumps({"label": i % 2}).encode()) for i in range(4)),
            *((f"x{i}.png", encoded(picture(seed=600 + i))) for i in range(4)),
        ),
        classes={"0": 7, "1": 7},
    ),
    "other members in shards": Case(
        shards(("._0.png", b"x"), ("0.txt", b"a caption"), ("99.cls", b"1")),
        classes=NUMBERED,
        facts={"files_ignored": {".png": 1, ".txt": 1}},
        findings={"labels without an image": 1},
    ),
    "an image without a class in a shard": Case(
        shards(("x.png", encoded(picture()))), error="x.png in .* has no class"
    ),
    "two images of one label in a shard": Case(
        shards(("x.1.png", b""), ("x.2.png", b""), ("x.cls", b"1")), error="x.1.png and x.2.png have one label"
    ),
    # What else people have.
    **{
        f"EXIF orientation {number}": added(exif(number), "jpg", added=colour, at=at, facts={"rotated": 1})
        for number, colour, at in (
            (2, BLUE, (4, 4)),
            (4, RED, (4, 4)),
            (5, RED, (4, 4)),
            (7, BLUE, (4, 4)),
            (8, BLUE, (4, 4)),
        )
    },
    "EXIF orientation of a PNG": added(exif(3, form="PNG"), added=BLUE, facts={"rotated": 1}),
    "an animated PNG": added(frames("PNG"), added=GREEN, findings={"animated images": 1}),
    "a TIFF of three pages": added(frames("TIFF"), "tif", added=GREEN, findings={"images of several pages": 1}),
    "a profile of sRGB": added(
        encoded(picture(GREEN), icc_profile=profile("sRGB")),
        added=GREEN,
        findings={},
    ),
    "a profile of another colour space": added(
        encoded(picture(GREEN), icc_profile=profile("LAB")),
        added=GREEN,
        findings={"images with a colour profile that is not sRGB": 1},
    ),
    "a damaged profile": added(
        encoded(picture(GREEN), "JPEG", icc_profile=b"garbage", quality=95),
        "jpg",
        added=GREEN,
        findings={"images with a colour profile that is not sRGB": 1},
    ),
    "a transparent colour": added(
        encoded(Image.new("RGB", (16, 16), GREEN), transparency=GREEN), added=WHITE, facts={"transparent": 1}
    ),
    "a TIFF of fractions": added(
        encoded(Image.new("F", (16, 16), 0.5), "TIFF"), "tif", error="values of mode F that are not whole numbers"
    ),
    "an SVG named .png": added(b"<svg xmlns='http://www.w3.org/2000/svg'/>", error="is no image that Pillow knows"),
    "a HEIC named .jpg": added(b"\0\0\0\x18ftypheic", "jpg", error="is no image that Pillow knows"),
    "formats that are not read": Case(
        beside(("cat/a.svg", b"x"), ("cat/b.heic", b"x"), ("cat/c.avif", b"x")),
        facts={"files_ignored": {".svg": 1, ".heic": 1, ".avif": 1}},
    ),
    "bytes behind a JPEG": added(jpeg() + b"garbage" * 99, "jpg"),
    "a JPEG without its end": added(jpeg()[:-2], "jpg", error="image file is truncated"),
    "a PNG without its end": added(encoded(picture())[:-30], error="image file is truncated"),
    "links to themselves": Case(
        self_linked, classes=FIVE, facts={"undecodable": 1}, findings={"undecodable images": 1}
    ),
    "a pipe among images": Case(pipe, findings={"special files": 1}),
    "class names in two forms of Unicode": Case(
        named("caf\u00e9", "cafe\u0301"),
        classes={"cafe\u0301": 4, "caf\u00e9": 4},
        findings={"classes of nearly the same name": 1},
    ),
    "class names that are no UTF-8": Case(named(os.fsdecode(b"caf\xe9"), "b"), classes={"b": 4, "caf\\xe9": 4}),
    "class names of numbers": Case(named("10", "2", "0"), classes={"0": 4, "10": 4, "2": 4}),
    "class names with spaces and dots": Case(named("a.png", "b c"), classes={"a.png": 4, "b c": 4}),
    "classes that are all held out": Case(
        rare_class, classes={**FIVE, "rare": 1}, findings={"classes whose rows are all held out": 2}
    ),
    "links in a shard": Case(linked_members, classes=NUMBERED, findings={"links in tar shards": 2}),
    "a label twice in a shard": Case(
        shards(("0.cls", b"0")), classes=NUMBERED, findings={"members of a tar shard with the name of a later one": 1}
    ),
    "labels with byte order marks and white space": Case(
        labelled(b"\xef\xbb\xbf0", b" 1\n", b"0", b"1", b"0"), classes={"0": 3, "1": 2}
    ),
    "labels with spaces": Case(labelled(b"a b", b"c", b"a b", b"c", b"c"), classes={"a b": 2, "c": 3}),
    "an empty label in a shard": Case(labelled(b"0", b"", b"1"), error="1.png in .* has no class"),
    "a negative label in a shard": Case(labelled(b"0", b"-1", b"1"), error="has the label -1 in data.source"),
    "labels with leading zeros": Case(of_table(labels=["01", "1"] * 5), classes={"01": 5, "1": 5}),
    "labels that are true or false": Case(of_table(labels=[True, False] * 5), classes={"False": 5, "True": 5}),
    "labels that are fractions": Case(of_table(labels=[0.0, 1.0] * 5), error="holds no classes"),
    "labels without a text": Case(of_table(labels=["", "b"] * 5), error="is empty in 5 rows of data.source"),
    "labels that are null": Case(of_table(labels=[0, None] * 5), error="is empty in 5 rows of data.source"),
    "labels with gaps": Case(of_table(labels=[0, 5] * 5), error="4 of 6 classes have no images: 1, 2, 3, 4"),
    "labels that differ in white space": Case(
        of_table(labels=["cat", "cat "] * 5),
        classes={"cat": 5, "cat ": 5},
        findings={"classes of nearly the same name": 1},
    ),
    "a truncated shard": Case(shards(cut=5000), error="a-000.tar': is no tar archive, or is damaged"),
}


def loaded(folder: Path, keys: dict[str, Any], **more: Any) -> Dataset:
    defaults: dict[str, Any] = {
        "kind": "images", "cache": str(folder.parent / "cache"), "size": 16, "validation_share": 0.2, "crop": "none",
        "flip": False, "mean": [0.0] * 3, "std": [1.0] * 3,
    }  # fmt: skip
    return load(ImageData(**{**defaults, **keys, **more}))


@pytest.mark.parametrize("name", CASES)
def test_input(tmp_path: Path, name: str) -> None:
    case, folder = CASES[name], tmp_path / "data"
    keys = case.build(folder)
    for crop in ("none", "resized"):
        if case.error is not None:
            with pytest.raises((ConfigError, ConfigErrors), match=case.error):
                loaded(folder, keys, crop=crop)
            continue
        data = loaded(folder, keys, crop=crop)
        assert data.summary is not None
        source = data.summary.source
        assert source.classes == (case.classes or FIVE)
        assert {key: getattr(source, key) for key in case.facts} == case.facts
        assert {found.what: found.count for found in source.findings if found.what in case.findings} == case.findings
        assert len(data.train) + len(data.validation) == sum(source.classes.values())
        if case.added is not None:
            assert pixels_of_added(data)[:, case.at[0], case.at[1]] == pytest.approx(
                np.array(case.added) / 255, abs=0.02
            ), crop


def pixels_of_added(data: Dataset) -> Any:
    """The picture that `added` has added: the sixth cat, which is the last one by name."""
    for samples in (data.train, data.validation):
        samples.train = False  # type: ignore[attr-defined]  # neither crop nor flip
        where = np.flatnonzero(samples.rows[:] == 5)  # type: ignore[attr-defined]
        if len(where):
            return samples.batch(where, where)["pixel_values"][0].numpy()
    raise AssertionError("it is in neither split")


def test_large_image_is_read_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    keys = beside(("cat/added.png", encoded(Image.new("1", (10_000, 10_000), 1))))(tmp_path / "data")
    data = loaded(tmp_path / "data", keys)
    assert data.summary is not None
    assert [(f.what, f.count) for f in data.summary.source.findings if "89,478,485" in f.what] == [
        ("images of more than 89,478,485 pixels", 1)
    ]
    assert pixels_of_added(data)[:, 8, 8].tolist() == [1, 1, 1]
    assert not [w for w in recwarn if "DecompressionBomb" in str(w.category)]


def test_all_undecodable_images_are_listed_in_a_file(tmp_path: Path) -> None:
    keys = beside(("cat/b.png", b""), ("dog/c.jpg", jpeg()[:-300]))(tmp_path / "data")
    with pytest.raises(ConfigErrors) as error:
        loaded(tmp_path / "data", keys)
    listed = next((tmp_path / "cache").glob("images-*/source/undecodable.jsonl"))
    assert f"(the first of 2, which are left out and listed in {listed})" in str(error.value)
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["b.png", "c.jpg"]
    assert lines[0]["reason"] == "the file is empty"
    built = listed.parent.stat().st_mtime_ns
    data = loaded(tmp_path / "data", keys, on_error="skip")
    assert data.classes == 2
    assert listed.parent.stat().st_mtime_ns == built, "the images are not checked again to skip some of them"
