"""Crops and flips of images. Every random choice is a function of the sample's key."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bellwether.trainer.data.sampling import random_bits, uniform

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_ATTEMPTS = 10


def normalise(pixels: Bytes, mean: list[float], std: list[float]) -> Floats:
    """``(pixels / 255 - mean) / std`` per channel: [..., C] uint8 to [..., C] float32."""
    scale = np.array([1 / (255 * s) for s in std], dtype=np.float32)
    shift = np.array([m / s for m, s in zip(mean, std, strict=True)], dtype=np.float32)
    return pixels * scale - shift


def pad_crop(images: Floats, keys: npt.ArrayLike, flip: bool) -> Floats:
    """Pads by size / 8 on each side and crops a random square of the old size; flips half of the images if `flip`.

    As for CIFAR in He et al. 2015, section 4.2: 4 pixels for size 32, filled with zeros after normalization, which is the
    mean.

    Args:
        images: [B, S, S, C], normalized.
        keys: B sample keys.
    """
    count, size = images.shape[:2]
    margin = size // 8
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    fractions = uniform(random_bits(keys, 3))
    corner = (fractions[:, :2] * (2 * margin + 1)).astype(np.int64)
    rows = corner[:, :1] + np.arange(size)
    columns = corner[:, 1:] + np.arange(size)
    if flip:
        columns = np.where(fractions[:, 2:] < 0.5, columns[:, ::-1], columns)
    cropped: Floats = padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cropped


def flip_half(images: Floats, keys: npt.ArrayLike) -> Floats:
    """Flips half of the images [B, S, S, C] horizontally."""
    turned = uniform(random_bits(keys, 3))[:, 2] < 0.5
    return np.where(turned[:, None, None, None], images[:, :, ::-1], images)


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


def central_crop_box(width: int, height: int) -> tuple[float, float, float, float]:
    """The crop box of evaluation: resize the short side to 256/224 of the size, then crop the central square."""
    side = min(width, height) * 224 / 256
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def resized(image: Any, size: int, box: tuple[float, float, float, float] | None = None) -> Bytes:
    """Resizes a PIL image, or its crop ``box``, to [size, size, C] uint8 (bilinear, antialiased)."""
    from PIL.Image import Resampling

    if box is not None or image.size != (size, size):
        image = image.resize((size, size), Resampling.BILINEAR, box=box)
    pixels: Bytes = np.asarray(image, dtype=np.uint8)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
