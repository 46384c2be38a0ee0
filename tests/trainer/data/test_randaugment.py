"""RandAugment: each operation against its definition, and how often and how strongly they take place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bellwether.trainer.data import load, randaugment
from bellwether.trainer.data.images import ImageData
from bellwether.trainer.data.sampling import sample_keys

RAMP = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))  # dark on the left, bright on the right


def applied(name: str, level: float, sign: float = 1, pixels: Any = RAMP, **options: Any) -> Any:
    return np.asarray(randaugment.apply(name, Image.fromarray(pixels), level, sign, **options)).astype(int)


@pytest.mark.parametrize(
    "name, level, sign, formula",
    [
        ("invert", 0.6, 1, lambda x: 255 - x),
        ("posterize", 0.6, 1, lambda x: x & 0b11000000),  # 4 - int(2.4) bits
        ("posterize", 0.0, 1, lambda x: x & 0b11110000),
        ("posterize", 1.0, 1, lambda x: 0 * x),
        ("solarize", 0.6, 1, lambda x: np.where(x < 256 - 153, x, 255 - x)),
        ("solarize-add", 0.6, 1, lambda x: np.where(x < 128, x + 66, x)),
        ("brightness", 0.6, 1, lambda x: np.minimum(1.54 * x, 255)),
        ("brightness", 0.6, -1, lambda x: 0.46 * x),
        ("brightness", 1.0, -1, lambda x: 0.1 * x),
        ("contrast", 0.6, -1, lambda x: 0.46 * x + 0.54 * 124),  # towards the mean
        ("color", 0.6, -1, lambda x: x),  # grey has none
    ],
)
def test_colours(name: str, level: float, sign: float, formula: Callable[[Any], Any]) -> None:
    """Pillow rounds to whole numbers, in some cases twice."""
    assert np.abs(applied(name, level, sign) - formula(RAMP.astype(int))).max() <= 1


def test_moves() -> None:
    dot = np.zeros((41, 41), dtype=np.uint8)
    dot[19:22, 29:32] = 200

    def middle(image: Any) -> tuple[float, float]:
        rows, columns = np.nonzero(image > 60)
        return rows.mean() - 20, columns.mean() - 20

    moved = {
        (name, sign): middle(applied(name, 0.4, sign, dot)) for name in randaugment.OPERATIONS[-5:] for sign in (1, -1)
    }
    turn = np.deg2rad(12)
    wanted = {
        "rotate": (-10 * np.sin(turn), 10 * np.cos(turn)),  # counter-clockwise
        "shear-x": (0.0, 10 - 0.12 * 20.5),
        "shear-y": (-0.12 * 30.5, 10.0),
        "translate-x": (0.0, 10 - 0.18 * 41),
        "translate-y": (-0.18 * 41, 10.0),
    }
    back = {
        "rotate": (10 * np.sin(turn), 10 * np.cos(turn)),
        "shear-x": (0.0, 10 + 0.12 * 20.5),
        "shear-y": (0.12 * 30.5, 10.0),
        "translate-x": (0.0, 10 + 0.18 * 41),
        "translate-y": (0.18 * 41, 10.0),
    }
    for name in wanted:
        assert moved[name, 1] == pytest.approx(wanted[name], abs=0.8), name  # pixels
        assert moved[name, -1] == pytest.approx(back[name], abs=0.8), name


def test_what_is_outside_is_filled() -> None:
    colour = np.full((16, 16, 3), 200, dtype=np.uint8)
    moved = applied("translate-x", 1.0, 1, colour, fill=(10, 20, 30))
    assert moved[0, -1].tolist() == [10, 20, 30]
    assert moved[0, 0].tolist() == [200, 200, 200]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, float]]:
    found: list[tuple[str, float, float]] = []

    def recorded(name: str, image: Any, level: float, sign: float, **options: Any) -> Any:
        found.append((name, level, sign))
        return image

    monkeypatch.setattr(randaugment, "apply", recorded)
    return found


def test_operations_magnitudes_and_directions(calls: list[tuple[str, float, float]]) -> None:
    config = ImageData(kind="images", randaugment=6, randaugment_ops=2, randaugment_std=0.5)
    for key in sample_keys(1, np.arange(3000)):
        randaugment.augmented(None, int(key), config)
    # 2 operations of which each takes place in half of the cases; 5 standard errors.
    assert len(calls) == pytest.approx(3000, abs=5 * (6000 * 0.25) ** 0.5)
    counts = Counter(name for name, _, _ in calls)
    assert set(counts) == set(randaugment.OPERATIONS)
    assert min(counts.values()) > 200 - 5 * 200**0.5
    assert max(counts.values()) < 200 + 5 * 200**0.5
    levels = np.array([level for _, level, _ in calls])
    assert levels.mean() == pytest.approx(0.6, abs=5 * 0.05 / 3000**0.5)
    assert levels.std() == pytest.approx(0.05, rel=0.1)
    assert np.mean([sign for _, _, sign in calls]) == pytest.approx(0, abs=5 / 3000**0.5)


def test_magnitudes_stay_in_their_range(calls: list[tuple[str, float, float]]) -> None:
    config = ImageData(kind="images", randaugment=10, randaugment_std=5, randaugment_share=1, randaugment_ops=3)
    for key in range(200):
        randaugment.augmented(None, key, config)
    assert len(calls) == 600
    assert max(level for _, level, _ in calls) == 1
    assert min(level for _, level, _ in calls) >= 0


@pytest.mark.parametrize("crop, mean", [("pad", [0.3]), ("resized", [0.3, 0.3, 0.3])])
def test_training_images_alone_are_changed_as_their_key_says(tmp_path: Path, crop: str, mean: list[float]) -> None:
    def samples(**keys: Any) -> Any:
        config = ImageData(kind="images", size=8, mean=mean, std=mean, crop=crop, cache=str(tmp_path), **keys)  # type: ignore[arg-type]
        return load(config)

    augmented, plain = samples(randaugment=6), samples()
    rows = range(64)
    first, again, other = (
        augmented.train.worker_batch(rows, sample_keys(seed, np.arange(64)))["pixels"] for seed in (1, 1, 2)
    )
    assert first.shape == (64, 8, 8, len(mean))
    assert (first == again).all()
    changed = (first != plain.train.worker_batch(rows, sample_keys(1, np.arange(64)))["pixels"]).flatten(1).any(1)
    # A quarter is left as it is, and some operations change little of a digit.
    assert 0.4 < changed.float().mean() < 0.9
    assert (first != other).any()
    held_out = [each.validation.worker_batch(rows, rows)["pixels"] for each in (augmented, plain)]
    assert (held_out[0] == held_out[1]).all()
