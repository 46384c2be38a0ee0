"""Any image classifier of transformers: what the data determine, and what is refused or said with pretrained weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bellwether.trainer.config import Config, ConfigError, ConfigErrors, validate
from bellwether.trainer.data import Dataset
from bellwether.trainer.memory.activations import DummySamples
from bellwether.trainer.models import build
from bellwether.trainer.models.norm import BatchNorm2d
from bellwether.trainer.models.tasks import Task
from bellwether.trainer.param_groups import check_patterns, parameter_names
from tests.trainer.models import families

GREY = {"kind": "images", "size": 8, "mean": [0.5], "std": [0.5]}


def config(model: dict[str, Any], data: dict[str, Any] = GREY) -> Config:
    return validate({
        "name": "x", "duration": "1 steps", "model": {"kind": "image-classifier", **model}, "data": data, "batch": {"global": 2},
        "optimizer": {"name": "lamb", "lr": 1e-3},
    })  # fmt: skip


def made(model: dict[str, Any], data: dict[str, Any] = GREY, classes: int = 10, checkpointing: bool = False) -> Task:
    c = config(model, data)
    samples = DummySamples(c.data)
    names = [f"class {i}" for i in range(classes)]
    torch.manual_seed(0)
    dataset = Dataset(samples, samples, classes=classes, channels=len(data["mean"]), labels=names)
    return build(c.model, dataset, activation_checkpointing=checkpointing)


@pytest.mark.parametrize("family", families.CLASSIFIERS)
def test_channels_classes_and_size_come_from_the_data(family: str) -> None:
    task = made({"config": families.classifier(family)})
    losses, correct = task(pixel_values=torch.randn(4, 1, 8, 8), labels=torch.arange(4))
    assert losses.shape == correct.shape == (4,)
    assert task.model.config.num_labels == 10
    assert task.model.config.id2label[9] == "class 9"
    assert getattr(task.model.config, "image_size", 8) == 8
    norms = [module for module in task.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert (family == "resnet") == bool(norms)
    assert all(type(norm) is BatchNorm2d for norm in norms)


@pytest.mark.parametrize("family", families.CLASSIFIERS)
def test_activation_checkpointing_changes_no_result(family: str) -> None:
    found = []
    for checkpointing in (False, True):
        task = made({"config": families.classifier(family)}, checkpointing=checkpointing)
        torch.manual_seed(1)
        task(pixel_values=torch.randn(4, 1, 8, 8), labels=torch.arange(4))[0].mean().backward()
        found.append([*(p.grad for p in task.parameters()), *task.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("family", families.CLASSIFIERS)
def test_pretrained_body_is_kept_and_the_head_of_other_classes_is_new(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "bellwether")
    first = made({"config": families.classifier(family)}).model
    first.save_pretrained(tmp_path)
    second = made({"init": str(tmp_path)}, classes=3).model
    old, new = first.state_dict(), second.state_dict()
    changed = [name for name in old if old[name].shape != new[name].shape or not torch.equal(old[name], new[name])]
    assert changed == [name for name in old if name.startswith("classifier.")]
    assert "newly initialized: 2 (classifier." in caplog.text
    assert "2 of them for their shape" in caplog.text


def test_kept_head_with_other_names_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = made({"config": families.classifier("resnet")}).model
    model.config.id2label = {i: f"animal {i}" for i in range(10)}
    model.save_pretrained(tmp_path)
    caplog.set_level("INFO", "bellwether")
    made({"init": str(tmp_path)})
    assert "is kept: as many classes, with other names (animal 0, animal 1, animal 2, animal 3, ...)" in caplog.text


def test_other_normalization_than_that_of_the_weights_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made({"config": families.classifier("convnext")}).model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.2], "image_std": [0.5]}))
    caplog.set_level("INFO", "bellwether")
    made({"init": str(tmp_path)})
    assert [m for m in caplog.messages if "data." in m] == [
        f"data.mean is [0.5]; the weights of {tmp_path} were trained with [0.2]"
    ]


def test_images_that_pretrained_weights_cannot_take_are_refused(tmp_path: Path) -> None:
    made({"config": families.classifier("vit")}).model.save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match=r"data.size: 16: the weights of model.init have positions for images of 8 pixels; write 8"
    ):
        made({"init": str(tmp_path)}, {**GREY, "size": 16})
    with pytest.raises(ConfigError, match=r"data.mean: .* are for 1 channels, the data have 3; write 1 values"):
        made({"init": str(tmp_path)}, {"kind": "images", "size": 8, "mean": [0.5] * 3, "std": [0.5] * 3})


def test_contradiction_to_the_data_is_refused() -> None:
    for key, value, named in (("image_size", 32, "data.size"), ("num_channels", 3, "data.mean")):
        with pytest.raises(ConfigErrors, match=rf"{named}: .*the data have {key} .*model.config.{key} is {value}"):
            config({"config": families.classifier("vit", **{key: value})})


def test_size_that_the_stages_do_not_allow_is_refused_before_the_start() -> None:
    with pytest.raises(
        ConfigError, match=r"data.size: 8: the ConvNextForImageClassification cannot take images of this size"
    ):
        parameter_names(config({"config": "convnext-tiny"}))
    assert len(parameter_names(config({"config": "convnext-tiny"}, {**GREY, "size": 32}))) > 100


def test_other_sizes_of_phases_and_held_out_images_are_refused_where_positions_are_learned() -> None:
    vit, resnet = {"config": families.classifier("vit")}, {"config": families.classifier("resnet")}
    sizes: dict[str, Any] = {"crop": "resized", **GREY}
    resized = [{"duration": "1 steps"}, {"duration": "1 steps", "data": {"size": 16}}]

    def check(model: dict[str, Any], data: dict[str, Any], **keys: Any) -> None:
        check_patterns(config(model, data).model_copy(update=keys), {}, "x")

    with pytest.raises(
        ConfigErrors, match=r"phases\[1\].data.size: 16: .*position.* and was .*; write 8, or take a model"
    ):
        check(vit, sizes, phases=resized)
    check(resnet, sizes, phases=resized)
    with pytest.raises(ConfigError, match=r"data.test_size: 16: the ViTForImageClassification cannot take images"):
        check(vit, {**sizes, "test_size": 16})
    check(resnet, {**sizes, "test_size": 16})


def test_our_own_residual_networks_start_from_their_exports(make: Callable[..., Task], tmp_path: Path) -> None:
    first = make("cifar-resnet", depth=8, channels=1).model
    first.save_pretrained(tmp_path)
    second = made({"init": str(tmp_path)}).model
    assert type(second) is type(first)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
