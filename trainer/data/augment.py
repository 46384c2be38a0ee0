"""Crops and flips. Every random choice follows from the sample's key."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bellwether.trainer.data.sampling import draws, uniform

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_ATTEMPTS = 10


def normalise(pixels: Bytes, mean: list[float], std: list[float]) -> Floats:
    """``(pixels / 255 - mean) / std`` per channel: [..., C] uint8 to [..., C] float32."""
    scale = np.array([1 / (255 * s) for s in std], dtype=np.float32)
    shift = np.array([m / s for m, s in zip(mean, std, strict=True)], dtype=np.float32)
    return pixels * scale - shift


def pad_crop(images: Floats, keys: npt.ArrayLike, flip: bool) -> Floats:
    """Pad by size / 8 on each side, cut a random square of the old size, mirror half of them.

    As for CIFAR in He et al. 2015, section 4.2: 4 pixels on 32, and zeros after normalisation, which is the mean.

    Args:
        images: [B, S, S, C], normalised.
        keys: B numbers.
    """
    count, size = images.shape[:2]
    margin = size // 8
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    chance = uniform(draws(keys, 3))
    corner = (chance[:, :2] * (2 * margin + 1)).astype(np.int64)
    rows = corner[:, :1] + np.arange(size)
    columns = corner[:, 1:] + np.arange(size)
    if flip:
        columns = np.where(chance[:, 2:] < 0.5, columns[:, ::-1], columns)
    cropped: Floats = padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cropped


def mirror(images: Floats, keys: npt.ArrayLike) -> Floats:
    """Mirror half of the images [B, S, S, C]."""
    turned = uniform(draws(keys, 3))[:, 2] < 0.5
    return np.where(turned[:, None, None, None], images[:, :, ::-1], images)


def random_area(width: int, height: int, key: int) -> tuple[int, int, int, int]:
    """A random part of an image: left, top, right, bottom in pixels.

    Its area is uniform in 8 % to 100 % of the image, its aspect ratio log-uniform in 3/4 to 4/3 (Szegedy et al. 2014,
    with the fallback that is usual for ImageNet: after ten parts that do not fit, the largest central one within
    these ratios).
    """
    chance = uniform(draws([key], 2 * _ATTEMPTS + 2))[0]
    for attempt in range(_ATTEMPTS):
        area = width * height * (0.08 + 0.92 * chance[2 * attempt])
        aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * chance[2 * attempt + 1])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(chance[-2] * (width - w + 1))
            top = int(chance[-1] * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * 4 / 3))
    h = min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def centre(width: int, height: int) -> tuple[float, float, float, float]:
    """The part that remains when the short side is resized to 256/224 of the size and the central square is cut."""
    side = min(width, height) * 224 / 256
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def resized(image: Any, size: int, box: tuple[float, float, float, float] | None = None) -> Bytes:
    """A PIL image, or the part of it in ``box``, as [size, size, C] uint8 (bilinear, antialiased)."""
    from PIL.Image import Resampling

    if box is not None or image.size != (size, size):
        image = image.resize((size, size), Resampling.BILINEAR, box=box)
    pixels: Bytes = np.asarray(image, dtype=np.uint8)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
