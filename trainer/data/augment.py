"""The random choices of crops and flips, functions of the sample's key, and the crop with resizing.

`finishing` applies the choices that need no decoding, on the device.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bellwether.trainer.data.sampling import Integers, random_bits, uniform

Bytes = npt.NDArray[np.uint8]

_ATTEMPTS = 10


def margin(size: int) -> int:
    """Pixels by which the crop ``pad`` pads each side: 4 for size 32, as for CIFAR in He et al. 2015, section 4.2."""
    return size // 8


def pad_crop_corners(keys: npt.ArrayLike, size: int) -> Integers:
    """Upper left corners of random crops of padded images: [B, 2], row and column from 0 to ``2 * margin(size)``."""
    corners: Integers = (uniform(random_bits(keys, 2)) * (2 * margin(size) + 1)).astype(np.int64)
    return corners


def mirrored_half(keys: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which half of the images to mirror: [B]."""
    mirrored: npt.NDArray[np.bool_] = uniform(random_bits(keys, 3))[:, 2] < 0.5
    return mirrored


def random_crop_box(width: int, height: int, key: int) -> tuple[int, int, int, int]:
    """A random crop box of an image: left, top, right, bottom in pixels.

    Its area is uniform in 8 % to 100 % of the image, its aspect ratio log-uniform in 3/4 to 4/3 (Szegedy et al. 2014,
    with the usual fallback for ImageNet: after ten boxes that do not fit, the largest central box within these ratios).
    """
    fractions = uniform(random_bits([key], 2 * _ATTEMPTS + 2))[0]
    for attempt in range(_ATTEMPTS):
        area = width * height * (0.08 + 0.92 * fractions[2 * attempt])
        aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * fractions[2 * attempt + 1])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(fractions[-2] * (width - w + 1))
            top = int(fractions[-1] * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * 4 / 3))
    h = min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def central_crop_box(width: int, height: int, share: float = 224 / 256) -> tuple[float, float, float, float]:
    """The crop box of evaluation: a central square whose side is `share` of the short side."""
    side = min(width, height) * share
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def resized(image: Any, size: int, box: tuple[float, float, float, float] | None = None) -> Bytes:
    """Resizes a PIL image, or its crop ``box``, to [size, size, C] uint8 (bilinear, antialiased)."""
    from PIL.Image import Resampling

    if box is not None or image.size != (size, size):
        image = image.resize((size, size), Resampling.BILINEAR, box=box)
    pixels: Bytes = np.asarray(image, dtype=np.uint8)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
