"""Means over held-out samples: weights, further losses, and accuracy that is not defined."""

from __future__ import annotations

import math

import pytest
import torch

from bellwether.trainer.held_out_means import HeldOutMeans


def nothing(*losses: float) -> dict[str, float]:
    return {}


def test_samples_count_by_their_weight() -> None:
    means = HeldOutMeans(0, torch.device("cpu"))
    predicted = torch.arange(3)
    assert means.add(torch.tensor([1.0, 1.0, 0.5]), [torch.tensor([2.0, 4.0, 8.0]), torch.ones(3), predicted]) == [
        predicted
    ]
    means.add(torch.tensor([1.0, 0.0, 0.0]), [torch.tensor([6.0, 99.0, 99.0]), torch.zeros(3)])
    assert means.results(nothing) == {"loss": 16 / 3.5, "accuracy": 2.5 / 3.5, "examples": 4}


def test_further_losses_are_averaged_apart_from_predictions() -> None:
    means = HeldOutMeans(2, torch.device("cpu"))
    further = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    assert means.add(torch.ones(2), [torch.zeros(2), torch.full((2,), math.nan), further]) == []
    results = means.results(lambda loss, first, second: {"first": first, "second": second})
    assert results == {"loss": 0.0, "first": 2.0, "second": 20.0, "examples": 2}, "no accuracy where it is not defined"


@pytest.mark.parametrize("count", [1, 5])
def test_count_is_that_of_the_samples(count: int) -> None:
    means = HeldOutMeans(0, torch.device("cpu"))
    means.add((torch.arange(8) < count).float(), [torch.zeros(8), torch.zeros(8)])
    assert means.count == count
