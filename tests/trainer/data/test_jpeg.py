from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import Dataset, load
from bellwether.trainer.data.images import ImageData


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Smooth pictures with noise, as JPEG with several subsamplings, progressive, grey and turned; and a PNG."""
    random = np.random.default_rng(0)
    header = Image.Exif()
    header[0x0112] = 6
    options: list[dict[str, Any]] = [
        {}, {"subsampling": 0}, {"progressive": True}, {"quality": 60}, {"exif": header}, {"mode": "L"}, {"form": "PNG"},
    ]  # fmt: skip
    for index in range(28):
        keys = dict(options[index % len(options)])
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
            (160, 120), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse, np.int16) + random.integers(-12, 13, (120, 160, 3))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(keys.pop("mode", "RGB"))
        file = io.BytesIO()
        image.save(file, keys.pop("form", "JPEG"), **keys)
        folder = tmp_path / "photos" / f"c{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.jpg").write_bytes(file.getvalue())
    return tmp_path / "photos"


def loaded(photos: Path, decoder: str, **keys: Any) -> Dataset:
    options = {"crop": "resized", "size": 48, "mean": [0.0] * 3, "std": [1 / 255] * 3, "validation_share": 0.5, **keys}
    return load(
        ImageData(kind="images", source=str(photos), cache=str(photos.parent / "cache"), decoder=decoder, **options)
    )


def test_fast_decoder_gives_pillows_pixels_within_the_stated_bound(photos: Path) -> None:
    pytest.importorskip("simplejpeg")
    slow, fast = loaded(photos, "pillow"), loaded(photos, "simplejpeg")
    rows = np.tile(np.arange(14), 8)
    a, b = (data.train.batch(rows, np.arange(len(rows)))["pixel_values"] for data in (slow, fast))
    difference = (a - b).abs()
    # Pillow's filter reads beyond the crop near its border. Elsewhere each of the two passes of a resize may round apart by 1.
    assert difference[:, :, 2:-2, 2:-2].max() <= 2.001
    assert difference.mean() < 0.2
    assert difference.max() > 0, "simplejpeg was used"
    a, b = (data.validation.batch(range(14), range(14))["pixel_values"] for data in (slow, fast))
    assert (a - b).abs().max() <= 1.001, "evaluation resizes by Pillow"


def test_decoder_and_its_version_identify_the_samples(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    plain = loaded(photos, "pillow").fingerprint
    assert loaded(photos, "simplejpeg").fingerprint == f"{plain}-simplejpeg-{simplejpeg.__version__}"
    monkeypatch.setattr(simplejpeg, "__version__", "9.9")
    assert loaded(photos, "simplejpeg").fingerprint == f"{plain}-simplejpeg-9.9"
    stored = loaded(photos, "simplejpeg", crop="none").fingerprint
    assert stored == loaded(photos, "pillow", crop="none").fingerprint, "images that are stored are decoded by Pillow"


def test_missing_decoder_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(ConfigError, match=r"data.decoder: 'simplejpeg': cannot be imported.*pip install simplejpeg"):
        loaded(photos, "simplejpeg")
