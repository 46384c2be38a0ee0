"""The image processor of an export beside the held-out images of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from bellwether.trainer import image_processor
from bellwether.trainer.data.images import ImageData

SIZES = [(61, 47), (40, 40), (33, 80), (24, 30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth images of several sizes and modes: one that EXIF turns, one grey, one with a palette."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("a", "b"):
        (folder / name).mkdir()
        for index, (width, height) in enumerate(SIZES):
            y, x = np.mgrid[:height, :width]
            waves = [127 + 120 * np.sin(x / (5 + index) + c) * np.cos(y / (4 + index)) for c in range(3)]
            image = Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))
            exif = Image.Exif()
            if index == 0:
                exif[0x0112] = 6
            image.save(folder / name / f"{index}.jpg", exif=exif, quality=95)
            image.convert("L").save(folder / name / f"{index}-grey.png")
            image.convert("P").save(folder / name / f"{index}-palette.png")
    return folder


@pytest.fixture
def both(folder: Path, tmp_path: Path) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    def compared(files: list[Path] | None = None, **keys: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The held-out images of a run, and those that the processor makes of the same files."""
        section = {
            "kind": "images",
            "source": str(folder),
            "validation": str(folder),
            "max_overlap": 1.0,
            "flip": False,
        }
        config = ImageData(**{**section, "cache": str(tmp_path / "cache"), **keys})
        samples = config.load().validation
        ours = samples.batch(range(len(samples)), range(len(samples)))["pixel_values"]
        image_processor.write(tmp_path, config)
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
        paths = sorted(folder.glob("*/*"))
        assert len(paths) == len(ours)
        images = [str(path) if config.channels == 3 else Image.open(path).convert("L") for path in paths]
        theirs = torch.cat([processor(images=[image], return_tensors="pt")["pixel_values"] for image in images])
        return ours, theirs

    return compared


@pytest.mark.parametrize("crop", ["none", "pad"])
def test_resized_images_are_those_of_evaluation(both: Callable[..., Any], crop: str) -> None:
    ours, theirs = both(size=32, crop=crop, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25])
    # Both normalize in float32: two roundings at values up to 3.
    assert torch.allclose(ours, theirs, atol=2e-6, rtol=0)


def test_grey_images_are_those_of_evaluation(folder: Path, both: Callable[..., Any]) -> None:
    ours, theirs = both(size=20, crop="none", mean=[0.3], std=[0.3])
    upright = [index for index, path in enumerate(sorted(folder.glob("*/*"))) if path.name != "0.jpg"]
    assert torch.allclose(ours[upright], theirs[upright], atol=2e-6, rtol=0)


@pytest.mark.parametrize("share", [1.0, 0.875, 0.95])
def test_central_squares_are_cut_within_a_pixel(both: Callable[..., Any], share: float) -> None:
    ours, theirs = both(size=24, test_size=28, test_crop=share, crop="resized", mean=[0.5] * 3, std=[1.0] * 3)
    assert ours.shape == theirs.shape == (24, 3, 28, 28)
    # Less than half a pixel of waves of at most 120 / 255 / 4 a pixel.
    assert (ours - theirs).abs().mean() < 0.03


def test_logits_are_those_of_the_run(both: Callable[..., Any]) -> None:
    ours, theirs = both(size=32, crop="pad")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    model = transformers.ResNetForImageClassification(config).eval()
    with torch.no_grad():
        assert torch.allclose(model(ours).logits, model(theirs).logits, atol=1e-5)
