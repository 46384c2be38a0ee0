"""The loss of classification, compared with torch's losses of soft targets and with the formulas written out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from bellwether.trainer.config import ConfigError, ConfigErrors, validate
from bellwether.trainer.config.schema import ModelConfig
from bellwether.trainer.config.schema.loss import Loss
from bellwether.trainer.data import Dataset
from bellwether.trainer.models import build
from bellwether.trainer.models.losses import ClassificationLoss, MixedLabels, correctness
from tests.trainer.models.conftest import NO_SAMPLES
from tests.trainer.runs import images, text

CLASSES = 7


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, MixedLabels]:
    generator = torch.Generator().manual_seed(seed)
    labels, other = torch.randint(CLASSES, (2, 12), generator=generator)
    other[0] = labels[0]  # a pair of one class
    return (
        torch.randn(12, CLASSES, generator=generator) * 3,
        labels,
        MixedLabels(other, torch.rand(12, generator=generator)),
    )


def soft(labels: torch.Tensor, mixed: MixedLabels | None, smoothing: float) -> torch.Tensor:
    """The targets, written element by element: with smoothing e, e / C everywhere and 1 - e more at the label."""
    found = torch.zeros(len(labels), CLASSES)
    for row, label in enumerate(labels):
        share = 1.0 if mixed is None else float(mixed.share[row])
        found[row, label] += share
        if mixed is not None:
            found[row, mixed.other[row]] += 1 - share
    return found * (1 - smoothing) + smoothing / CLASSES


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_cross_entropy_is_that_of_the_soft_targets(smoothing: float, is_mixed: bool) -> None:
    logits, labels, mixed = batch()
    given = mixed if is_mixed else None
    wanted = functional.cross_entropy(logits, soft(labels, given, smoothing), reduction="none")
    found = ClassificationLoss(label_smoothing=smoothing)(logits, labels, given)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)  # float32, other order of additions
    if not smoothing and not is_mixed:
        assert torch.equal(found, functional.cross_entropy(logits, labels, reduction="none"))


@pytest.mark.parametrize("smoothing, threshold", [(0.0, None), (0.1, None), (0.0, 0.2), (0.0, 0.0)])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_binary_cross_entropy_is_the_mean_over_the_classes(
    smoothing: float, threshold: float | None, is_mixed: bool
) -> None:
    logits, labels, mixed = batch()
    given = mixed if is_mixed else None
    targets = soft(labels, given, smoothing)
    if threshold is not None:
        targets = torch.where(targets > threshold, 1.0, 0.0)
    chance = logits.double().sigmoid()
    wanted = -(targets * chance.log() + (1 - targets) * (1 - chance).log()).mean(dim=1)
    found = ClassificationLoss("bce", smoothing, threshold)(logits, labels, given)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6)  # float32 against float64


def test_a_threshold_makes_both_classes_of_a_mixed_image_present() -> None:
    """As RSB trains: an image of a cat (0.7) and a dog (0.3) shows a cat and a dog, at 0.2; one of 0.9 and 0.1 only a cat."""
    labels, mixed = torch.tensor([0, 0, 1]), MixedLabels(torch.tensor([2, 2, 1]), torch.tensor([0.7, 0.9, 0.6]))
    targets = ClassificationLoss("bce", threshold=0.2).targets(labels, 3, mixed)
    assert targets.tolist() == [[1, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_correctness_of_mixed_labels_is_the_share_of_the_predicted_class() -> None:
    logits = torch.eye(3)
    mixed = MixedLabels(torch.tensor([1, 1, 0]), torch.tensor([0.75, 0.75, 0.75]))
    labels = torch.tensor([0, 0, 1])
    assert correctness(logits, labels, mixed).tolist() == [0.75, 0.25, 0.0]
    assert correctness(logits, labels).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    "keys", [{"label_smoothing": 0.1}, {"kind": "bce"}, {"kind": "bce", "threshold": 0.2}], ids=str
)
def test_the_held_out_loss_is_the_plain_cross_entropy(keys: dict[str, Any]) -> None:
    names = [f"class {i}" for i in range(10)]
    data = Dataset(NO_SAMPLES, NO_SAMPLES, classes=10, channels=3, labels=names)
    torch.manual_seed(0)
    task = build(ModelConfig.model_validate({"kind": "cifar-resnet", "depth": 8}), data, loss=Loss(**keys))
    inputs = {"pixel_values": torch.randn(4, 3, 8, 8), "labels": torch.arange(4)}
    task.eval()
    logits = task.model(inputs["pixel_values"]).logits
    assert torch.equal(task(**inputs)[0], functional.cross_entropy(logits, inputs["labels"], reduction="none"))
    task.train()
    loss = task(**inputs)[0]
    logits = task.model(inputs["pixel_values"]).logits
    assert torch.equal(loss, ClassificationLoss(**keys)(logits, inputs["labels"]))


def test_smoothed_labels_of_words_leave_padding_out() -> None:
    logits, labels = torch.randn(2, CLASSES, 5), torch.randint(CLASSES, (2, 5))
    labels[1, 3:] = -100
    found = ClassificationLoss(label_smoothing=0.1)(logits, labels)
    assert found.shape == (2, 5)
    assert found[1, 3:].tolist() == [0, 0]


def test_the_loss_of_a_number_cannot_be_smoothed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Regression(torch.nn.Module):
        is_regression = True

    config = ModelConfig.model_validate({"kind": "cifar-resnet"})
    monkeypatch.setattr(type(config), "build", lambda *_: Regression())
    with pytest.raises(
        ConfigError, match=r"loss: .*label smoothing 0\.1.*: the labels are numbers.*remove the section"
    ):
        build(config, NO_SAMPLES, loss=Loss(label_smoothing=0.1))


@pytest.mark.parametrize(
    "make, loss, message",
    [
        (text, {"label_smoothing": 0.1}, "loss.label_smoothing: 0.1: model.kind: bert cannot be trained on it; remove"),
        (text, {"kind": "bce"}, "loss.kind: 'bce': model.kind: bert cannot be trained on it; remove the section loss"),
        (images, {"label_smoothing": 1}, "loss.label_smoothing: 1: must be less than 1"),
        (images, {"threshold": 0.2}, "loss.threshold: 0.2: cross-entropy has none; remove it, or write kind: bce"),
        (images, {"kind": "bce", "threshold": 0.2, "label_smoothing": 0.1}, "loss.threshold: 0.2: it would undo"),
    ],
)
def test_what_a_loss_cannot_be(make: Callable[..., Any], loss: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigErrors) as error:
        validate(make(Path("x"), "x", loss=loss))
    assert message in str(error.value)
    assert len(error.value.errors) == 1
