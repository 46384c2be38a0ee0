"""Damaged images and arbitrary folders: never a traceback, and no image is lost without being counted."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bellwether.trainer.config.errors import ConfigError, ConfigErrors
from bellwether.trainer.data import load
from bellwether.trainer.data.image_decoding import Undecodable, decode
from bellwether.trainer.data.images import ImageData

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

QUICK: dict[str, Any] = {
    "deadline": None, "database": None, "derandomize": True,
    "suppress_health_check": list(hypothesis.HealthCheck),
}  # fmt: skip


def encoded(form: str, mode: str, seed: int = 0, **options: Any) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (12, 10, 4), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, form, **options)
    return file.getvalue()


def turned() -> bytes:
    header = Image.Exif()
    header[0x0112] = 6
    return encoded("JPEG", "RGB", exif=header)


SEEDS = [
    encoded("JPEG", "RGB"), encoded("JPEG", "L", progressive=True), encoded("JPEG", "CMYK"), turned(), encoded("PNG", "RGBA"),
    encoded("PNG", "P"), encoded("PNG", "1"), encoded("GIF", "P", save_all=True, append_images=[Image.new("P", (10, 12), 3)]),
    encoded("WEBP", "RGBA"), encoded("BMP", "RGB"), encoded("TIFF", "RGB", compression="tiff_lzw"), encoded("PPM", "L"),
]  # fmt: skip


@hypothesis.settings(max_examples=400, **QUICK)
@hypothesis.given(st.data())
def test_damaged_image_is_decoded_or_refused(data: Any) -> None:
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        how = data.draw(st.sampled_from(["cut", "byte", "insert", "remove", "splice"]))
        if how == "cut":
            del content[at:]
        elif how == "byte" and content:
            content[at] = data.draw(st.integers(0, 255))
        elif how == "insert":
            content[at:at] = data.draw(st.binary(max_size=8))
        elif how == "remove":
            del content[at : at + data.draw(st.integers(1, 20))]
        else:
            content[at:] = data.draw(st.sampled_from(SEEDS))[at:]
    channels = data.draw(st.sampled_from([1, 3]))
    try:
        image, traits = decode(bytes(content), channels)
    except Undecodable:
        with pytest.raises(Undecodable):
            decode(bytes(content), channels)
        return
    assert image.mode == ("L" if channels == 1 else "RGB")
    assert sorted(image.size) == sorted(traits.size)


NAMES = st.sampled_from(["cat", "dog", "Dog", "a b", "hünd", "n\udcff", ".git", "__MACOSX", ".ipynb_checkpoints"])
FILES = st.sampled_from(
    ["0.png", "1.jpg", "2.JPEG", "3.webp", "4.tgz", "Thumbs.db", ".DS_Store", "._5.png", "note.txt", "6", "7.bmp."]
)
CONTENTS = st.one_of(
    st.just(b""), st.just(b"<html>"), st.sampled_from(SEEDS), st.sampled_from(SEEDS).map(lambda s: s[: len(s) // 2])
)
TREES = st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=3), FILES, CONTENTS), min_size=1, max_size=20)


@hypothesis.settings(max_examples=60, **QUICK)
@hypothesis.given(TREES, st.sampled_from(["none", "resized"]))
def test_every_file_of_a_folder_is_read_or_counted(tree: list[tuple[list[str], str, bytes]], crop: str) -> None:
    root = Path(tempfile.mkdtemp())
    try:
        hidden = Counter[bool]()
        sound = [
            ([folder], f"{index}.png", encoded("PNG", "RGB", index)) for index, folder in enumerate(("cat", "dog") * 2)
        ]
        for index, (folders, name, content) in enumerate(sound + tree):
            folder = root.joinpath("data", *folders)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{'.' if name.startswith('.') else ''}{index}{name}").write_bytes(content)
            hidden[any(part.startswith((".", "__MACOSX")) for part in folders)] += 1
        keys: dict[str, Any] = {
            "kind": "images",
            "cache": str(root / "cache"),
            "size": 8,
            "crop": crop,
            "on_error": "skip",
        }
        limits = {"allow_empty_classes": True, "max_overlap": 1.0}
        try:
            summary = load(ImageData(**keys, **limits, source=str(root / "data"), validation_share=0.4)).summary
        except (ConfigError, ConfigErrors):
            return
        assert summary is not None
        source = summary.source
        assert source.files_read == sum(source.classes.values()) + source.undecodable
        assert source.files_read + sum(source.files_ignored.values()) == hidden[False]
        assert summary.rows_train + sum(summary.rows_held_out.values()) == sum(source.classes.values())
    finally:
        shutil.rmtree(root)
