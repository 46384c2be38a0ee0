"""The image processor of transformers that does to images what evaluation does, written beside an exported model."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from bellwether.trainer.data.images import ImageData

log = logging.getLogger(__name__)

FILE = "preprocessor_config.json"
_BILINEAR = 2  # Pillow's number

#: What transformers does otherwise, whatever the processor.
DIFFERENCES = (
    "transparent pixels lose their transparency instead of being composited over white, and 16-bit grey is clipped to 8 bits",
    "where torchvision is installed, images are resized by it unless backend='pil' is given, which rounds otherwise",
)


def write(folder: Path, config: ImageData) -> None:
    """Writes ``preprocessor_config.json``, and logs where its images differ from those of evaluation."""
    (folder / FILE).write_text(json.dumps(keys(config), indent=2) + "\n", encoding="utf-8")
    differences = list(DIFFERENCES)
    if config.crop == "resized":
        differences.insert(0, "the central square is cut at whole pixels, at most one off on each side")
    if config.channels == 1:
        differences.insert(0, "it takes grey images (Pillow's mode L), no files, which transformers reads as colour")
    log.info("%s: as evaluation, but %s", FILE, "; ".join(differences))


def keys(config: ImageData) -> dict[str, Any]:
    """The content of the file: images are resized to a square, with crop ``resized`` from a central one, and normalized."""
    side = config.held_out_size
    square = {"height": side, "width": side}
    found = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": square, "resample": _BILINEAR,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": config.mean, "image_std": config.std,
        "do_convert_rgb": config.channels == 3,
    }  # fmt: skip
    if config.crop != "resized":
        return found
    # Perceiver's is the one that crops before it resizes: a square of size / crop_size of the short side.
    crop = side / config.test_crop
    cropped = dict.fromkeys(("height", "width"), int(crop) if crop == int(crop) else crop)
    return {**found, "image_processor_type": "PerceiverImageProcessor", "do_center_crop": True, "crop_size": cropped}
