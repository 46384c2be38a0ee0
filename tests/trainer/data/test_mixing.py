"""Mixup, CutMix and random erasing: what they do to pixels and labels, how they are distributed, and what they depend on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from bellwether.trainer.config import ConfigErrors, validate
from bellwether.trainer.data import finishing, load, mixing
from bellwether.trainer.data.images import ImageData
from bellwether.trainer.data.loader import train_batches
from bellwether.trainer.data.sampling import random_bits, sample_keys, uniform
from tests.trainer.runs import images

KEYS = sample_keys(3, np.arange(4000))
EVERYTHING = {
    "size": 8, "mean": [0.3], "std": [0.3], "randaugment": 6, "mixup": 0.1, "cutmix": 1.0, "erase": 0.3, "mix_share": 0.9,
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Any) -> Callable[..., ImageData]:
    return lambda **keys: ImageData(kind="images", cache=str(tmp_path / "cache"), workers=0, **keys)


def area(box: Any, size: int) -> Any:
    return (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / size**2


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.4, 1.0])
def test_shares_have_the_beta_distribution(alpha: float) -> None:
    found = mixing.beta(uniform(random_bits(KEYS, 64)), alpha)
    # Of a small alpha, many shares round to 0 or 1: compared in the middle. The bounds are 5 standard errors of 4,000 numbers.
    for at in (0.02, 0.25, 0.5, 0.75, 0.98):
        wanted = stats.beta(alpha, alpha).cdf(at)
        assert (found <= at).mean() == pytest.approx(wanted, abs=5 * (wanted * (1 - wanted) / len(KEYS)) ** 0.5)


def test_cutmix_cuts_out_what_its_share_says() -> None:
    own, box = mixing.mixing(KEYS, 32, 0, 1.0, 1.0)
    assert (own == 1).all()
    assert (box >= 0).all()
    assert (box <= 32).all()
    # Without clipping at the border the mean area were 1/2; timm 1.0.20's `cutmix_bbox_and_lam` has 0.2998 (20,000 draws).
    assert area(box, 32).mean() == pytest.approx(0.2998, abs=0.02)


def test_mixup_or_cutmix_at_even_odds_in_a_share_of_the_images() -> None:
    own, box = mixing.mixing(KEYS, 32, 1.0, 1.0, 0.6)
    is_cut, is_blended = area(box, 32) > 0, own < 1
    assert not (is_cut & is_blended).any()
    assert is_blended.mean() == pytest.approx(0.3, abs=0.04)
    assert is_cut.mean() == pytest.approx(0.3, abs=0.04)
    alone, no_box = mixing.mixing(KEYS, 32, 1.0, 0, 1.0)
    assert (alone < 1).all()
    assert not no_box.any()


def test_erased_rectangles() -> None:
    box = mixing.erased(KEYS, 32, 0.25)
    erased = box[area(box, 32) > 0]
    assert len(erased) / len(KEYS) == pytest.approx(0.25, abs=0.04)
    areas = area(erased, 32)
    assert areas.min() > 0.015
    assert areas.max() < 0.35
    # Uniform in 2 % to a third; timm 1.0.20's RandomErasing has a mean of 0.1759 (5,000 draws).
    assert areas.mean() == pytest.approx(0.1759, abs=0.01)
    aspects = (erased[:, 2] - erased[:, 0]) / (erased[:, 3] - erased[:, 1])
    assert 0.25 < aspects.min() < 0.4
    assert 2.5 < aspects.max() < 4


def test_pixels_of_a_pair_are_mixed_and_a_rectangle_filled() -> None:
    pair = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    mixed = finishing.mix(pair.clone(), torch.tensor([0.75, 1.0]), torch.tensor([[0, 0, 0, 0], [1, 0, 3, 2]]))
    assert torch.equal(mixed[0], torch.full((1, 4, 4), 0.25))
    assert mixed[1, 0].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]]
    erased = finishing.erase(pair.clone(), torch.tensor([[0, 0, 4, 4], [0, 1, 1, 4]]))
    assert erased[1, 0].tolist() == [[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_labels_are_mixed_as_the_pixels_are(config: Callable[..., ImageData]) -> None:
    """Of black and white images the share of the label is the brightness."""
    data = load(config(size=8, crop="none", flip=False, mean=[0.0], std=[1.0], mixup=0.4, cutmix=1.0))
    samples: Any = data.train
    worker = samples.worker_batch(range(200), sample_keys(1, np.arange(200)))
    worker["pixels"] = torch.zeros_like(worker["pixels"])
    worker["pixels"][::2] = 255
    batch = samples.finish(worker)
    assert torch.equal(batch["other_labels"].view(-1, 2), batch["labels"].view(-1, 2).flip(1))
    brightness = batch["pixel_values"].mean(dim=(1, 2, 3))
    torch.testing.assert_close(brightness[::2], batch["label_share"][::2], rtol=0, atol=1e-6)
    torch.testing.assert_close(1 - brightness[1::2], batch["label_share"][1::2], rtol=0, atol=1e-6)
    assert batch["label_share"].unique().numel() > 50


def global_batches(samples: Any, world: int, micro: int, start: int = 0, workers: int = 0) -> list[dict[str, Any]]:
    """The global batches from a sample on, put together from all ranks and micro-batches."""
    steps, accumulation = 5 - start // 12, 12 // (world * micro)
    parts = [
        list(train_batches(samples, seed=5, start=start, steps=steps, global_batch=12, micro=micro,
                           accumulation=accumulation, rank=rank, world_size=world, workers=workers))
        for rank in range(world)
    ]  # fmt: skip
    return [
        {
            name: torch.cat(
                [parts[r][step * accumulation + a][name] for a in range(accumulation) for r in range(world)]
            )
            for name in parts[0][0]
        }
        for step in range(steps)
    ]


def test_a_batch_depends_on_seed_and_position_alone(config: Callable[..., ImageData]) -> None:
    samples = load(config(**EVERYTHING)).train
    whole = global_batches(samples, 1, 12)
    assert set(whole[0]) == {"pixel_values", "labels", "sample_keys", "other_labels", "label_share"}
    for other in (
        global_batches(samples, 2, 2),
        global_batches(samples, 3, 4),
        global_batches(samples, 1, 12, start=24),
    ):
        for found, wanted in zip(other, whole[-len(other) :], strict=True):
            for name, tensor in wanted.items():
                assert torch.equal(found[name], tensor), name


@pytest.mark.process
def test_a_batch_does_not_depend_on_the_workers(config: Callable[..., ImageData]) -> None:
    samples = load(config(**EVERYTHING)).train
    for found, wanted in zip(global_batches(samples, 1, 6, workers=1), global_batches(samples, 1, 6), strict=True):
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), name


def test_held_out_images_are_neither_mixed_nor_changed(config: Callable[..., ImageData]) -> None:
    plain = {"size": 8, "mean": [0.3], "std": [0.3]}
    rows, keys = range(9), range(9)  # also an odd number
    found = load(config(**EVERYTHING)).validation.batch(rows, keys)
    wanted = load(config(**plain)).validation.batch(rows, keys)
    assert found.keys() == wanted.keys() == {"pixel_values", "labels"}
    assert torch.equal(found["pixel_values"], wanted["pixel_values"])


def test_batches_that_would_cut_pairs_are_refused(config: Callable[..., ImageData]) -> None:
    samples = load(config(size=8, mean=[0.3], std=[0.3], mixup=0.2)).train
    with pytest.raises(ValueError, match="micro-batches of 3 from sample 0 on would cut units of 2"):
        global_batches(samples, 1, 3)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"mixup": 1.5}, "data.mixup: 1.5: must be less than or equal to 1"),
        ({"cutmix": -1}, "data.cutmix: -1: must be greater than or equal to 0"),
        ({"erase": 2}, "data.erase: 2: must be less than or equal to 1"),
        ({"mix_share": 0.5}, "data.mix_share: 0.5: has no effect without mixup; remove it, or write data.mixup"),
        ({"randaugment": 11}, "data.randaugment: 11: must be less than or equal to 10"),
        ({"randaugment_ops": 3}, "data.randaugment_ops: 3: has no effect without randaugment"),
        ({"randaugment": 5, "randaugment_ops": 0}, "data.randaugment_ops: 0: must be greater than 0"),
        ({"test_size": 16}, "data.test_size: 16: goes with crop: resized; remove it, or write crop: resized"),
        ({"test_crop": 0.9}, "data.test_crop: 0.9: goes with crop: resized; remove it, or write crop: resized"),
        ({"crop": "resized", "test_crop": 1.1}, "data.test_crop: 1.1: must be less than or equal to 1"),
    ],
    ids=str,
)
def test_invalid_keys_are_refused(tmp_path: Any, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigErrors) as error:
        validate(images(tmp_path, "x", data=keys))
    assert message in str(error.value)
    assert len(error.value.errors) == 1
