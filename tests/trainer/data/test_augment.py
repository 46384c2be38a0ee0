from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from bellwether.trainer.data import augment
from bellwether.trainer.data.sampling import sample_keys

SEEDS = sample_keys(1, np.arange(4000))


def test_normalise() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    mean, std = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
    found = augment.normalise(pixels, mean, std)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (pixels / 255 - mean) / std, atol=2e-6)  # float32 on values up to 2


def test_pad_crop_reaches_every_offset_and_flips_half() -> None:
    size, margin = 16, 2
    image = np.arange(1, size * size + 1, dtype=np.float32).reshape(1, size, size, 1)
    padded = np.pad(image[0, :, :, 0], margin)
    squares = {padded[y : y + size, x : x + size].tobytes(): (y, x, 0) for y in range(5) for x in range(5)}
    squares |= {
        np.ascontiguousarray(padded[y : y + size, x : x + size][:, ::-1]).tobytes(): (y, x, 1)
        for y in range(5)
        for x in range(5)
    }
    crops = augment.pad_crop(np.repeat(image, 4000, axis=0), SEEDS, flip=True)
    counts = np.zeros((5, 5, 2))
    for crop in crops:
        counts[squares[crop[:, :, 0].tobytes()]] += 1
    assert np.abs(counts - 80).max() < 5 * np.sqrt(80)
    unflipped = augment.pad_crop(np.repeat(image, 50, axis=0), SEEDS[:50], flip=False)
    assert all(squares[crop[:, :, 0].tobytes()][2] == 0 for crop in unflipped)


def test_augmentation_is_independent_of_the_batch() -> None:
    images = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
    for change in (lambda i, k: augment.pad_crop(i, k, True), augment.flip_half):
        whole = change(images, SEEDS[:8])
        alone = np.concatenate([change(images[i : i + 1], SEEDS[i : i + 1]) for i in reversed(range(8))])[::-1]
        assert np.array_equal(whole, alone)


def test_flip_half() -> None:
    images = np.repeat(np.arange(8, dtype=np.float32).reshape(1, 1, 8, 1), 4000, axis=0)
    turned = augment.flip_half(images, SEEDS)[:, 0, 0, 0] == 7
    assert abs(turned.mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)


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
