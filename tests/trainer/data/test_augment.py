from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from bellwether.trainer.data import augment
from bellwether.trainer.data.finishing import Finisher
from bellwether.trainer.data.sampling import random_bits, sample_keys, uniform

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

SEEDS = sample_keys(1, np.arange(4000))


def normalised(pixels: Bytes, mean: list[float], std: list[float]) -> Floats:
    """``(pixels / 255 - mean) / std`` per channel, [..., C], in two operations of float32."""
    scale = np.array([1 / (255 * s) for s in std], dtype=np.float32)
    shift = np.array([m / s for m, s in zip(mean, std, strict=True)], dtype=np.float32)
    return pixels * scale - shift


def pad_cropped(images: Floats, keys: Any, flip: bool) -> Floats:
    """Normalized images [B, S, S, C], padded with zeros, cropped and mirrored: what `finishing` computes from bytes."""
    count, size = images.shape[:2]
    margin = size // 8
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    fractions = uniform(random_bits(keys, 3))
    corner = (fractions[:, :2] * (2 * margin + 1)).astype(np.int64)
    rows, columns = (corner[:, i : i + 1] + np.arange(size) for i in range(2))
    if flip:
        columns = np.where(fractions[:, 2:] < 0.5, columns[:, ::-1], columns)
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def flipped(images: Floats, keys: Any) -> Floats:
    turned = uniform(random_bits(keys, 3))[:, 2] < 0.5
    return np.where(turned[:, None, None, None], images[:, :, ::-1], images)


def finished(pixels: Bytes, mean: list[float], std: list[float], keys: Any, crop: bool, flip: bool) -> Floats:
    """What a worker and the device make of the pixels, [B, S, S, C]."""
    corner = torch.from_numpy(augment.pad_crop_corners(keys, pixels.shape[1])) if crop else None
    mirror = torch.from_numpy(augment.mirrored_half(keys)) if flip else None
    found = Finisher(mean, std)(torch.from_numpy(pixels), mirror, corner)
    as_numpy = torch.from_numpy(np.ascontiguousarray(np.empty(pixels.shape, np.float32).transpose(0, 3, 1, 2)))
    assert found.stride() == as_numpy.stride(), "convolutions round otherwise with other strides"
    return found.permute(0, 2, 3, 1).numpy()


def test_normalise() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    mean, std = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
    found = finished(pixels, mean, std, SEEDS[:1], False, False)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (pixels / 255 - mean) / std, atol=2e-6)  # float32 on values up to 2


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("size, channels", [(32, 3), (16, 1), (9, 3), (4, 3)])
def test_finishing_bytes_gives_the_bits_of_augmenting_normalized_images(
    size: int, channels: int, crop: bool, flip: bool
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, size, size, channels), dtype=np.uint8)
    mean, std, keys = [0.491, 0.482, 0.447][:channels], [0.247, 0.243, 0.262][:channels], SEEDS[:200]
    expected = normalised(pixels, mean, std)
    if crop:
        expected = pad_cropped(expected, keys, flip)
    elif flip:
        expected = flipped(expected, keys)
    found = finished(pixels, mean, std, keys, crop, flip)
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_pad_crop_reaches_every_offset_and_flips_half() -> None:
    size, margin = 16, 2
    image = np.arange(size * size, dtype=np.uint8).reshape(1, size, size, 1)
    padded = np.pad(normalised(image, [0.3], [0.5])[0, :, :, 0], margin)
    squares = {padded[y : y + size, x : x + size].tobytes(): (y, x, 0) for y in range(5) for x in range(5)}
    squares |= {
        np.ascontiguousarray(padded[y : y + size, x : x + size][:, ::-1]).tobytes(): (y, x, 1)
        for y in range(5)
        for x in range(5)
    }
    crops = finished(np.repeat(image, 4000, axis=0), [0.3], [0.5], SEEDS, True, True)
    counts = np.zeros((5, 5, 2))
    for crop in crops:
        counts[squares[crop[:, :, 0].tobytes()]] += 1
    assert np.abs(counts - 80).max() < 5 * np.sqrt(80)
    unflipped = finished(np.repeat(image, 50, axis=0), [0.3], [0.5], SEEDS[:50], True, False)
    assert all(squares[crop[:, :, 0].tobytes()][2] == 0 for crop in unflipped)


@pytest.mark.parametrize("crop", [False, True])
def test_augmentation_is_independent_of_the_batch(crop: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    options: Any = ([0.5] * 3, [0.2] * 3)
    whole = finished(images, *options, SEEDS[:8], crop, True)
    alone = [finished(images[i : i + 1], *options, SEEDS[i : i + 1], crop, True) for i in range(8)]
    assert np.array_equal(whole, np.concatenate(alone))


def test_half_of_the_images_are_mirrored() -> None:
    assert abs(augment.mirrored_half(SEEDS).mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)


def test_random_crop_boxes_have_the_documented_areas_and_aspect_ratios() -> None:
    boxes = np.array([augment.random_crop_box(400, 300, int(key)) for key in SEEDS])
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 400
    assert boxes[:, 3].max() <= 300
    area, aspect = width * height / (400 * 300), width / height
    assert 0.075 < area.min() < 0.1
    assert 0.95 < area.max() <= 1
    assert 0.73 < aspect.min() < 0.78
    assert 1.3 < aspect.max() < 1.36
    small = area < 0.3  # larger ones do not fit in all shapes
    assert abs(np.log(aspect[small]).mean()) < 5 * 0.17 / np.sqrt(small.sum())
    assert abs((boxes[small, 0] / (400 - width[small])).mean() - 0.5) < 0.05


@pytest.mark.parametrize(
    "size, box", [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506)), ((1, 1), (0, 0, 1, 1))]
)
def test_random_crop_box_falls_back_to_the_central_one(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    assert augment.random_crop_box(*size, 5) == box


def test_central_crop_box_equals_resize_then_crop() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 512, 3), dtype=np.uint8))
    # The short side is 256 already, so only the crop to 224 remains, which is exact.
    found = augment.resized(image, 224, augment.central_crop_box(512, 256))
    assert np.array_equal(found, np.asarray(image)[16:240, 144:368])


def test_resized_keeps_grey_as_one_channel() -> None:
    assert augment.resized(Image.new("L", (8, 8), 7), 16).shape == (16, 16, 1)
    assert augment.resized(Image.new("RGB", (9, 8)), 8).shape == (8, 8, 3)
