"""Exports in parts beside ``save_pretrained`` of the whole model: the same files, and one shard in memory at a time."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from bellwether.trainer import checkpoint, models
from bellwether.trainer.buffers import persistent
from bellwether.trainer.config.schema import ModelConfig
from bellwether.trainer.data import Dataset
from bellwether.trainer.export_in_parts import export_in_parts
from bellwether.trainer.memory.live_bytes import LiveBytes
from bellwether.trainer.models.architecture import for_checkpoint
from tests.trainer.models import families

LARGER = {"num_hidden_layers": 8, "hidden_size": 64, "intermediate_size": 256}
MODELS: dict[str, dict[str, Any]] = {
    "bert-tiny": {"kind": "bert", "size": "tiny"},
    **{family: {"kind": "masked-lm", "config": families.keys(family)} for family in families.ENCODERS},
    **{family: {"kind": "image-classifier", "config": families.classifier(family)} for family in families.CLASSIFIERS},
    "bert-classifier": {"kind": "sequence-classifier", "config": families.keys("bert")},
    "our-own": {"kind": "cifar-resnet", "depth": 8},
    "awd-lstm": {"kind": "awd-lstm", "embedding_size": 8, "hidden_size": 12},
}


def dataset() -> Dataset:
    samples: Any = None
    return Dataset(samples, samples, 100, 10, 3, [str(i) for i in range(10)])


def build(section: ModelConfig) -> Any:
    with for_checkpoint():
        return models.build(section, dataset())


class Weights:
    """Those of a task, in place of a checkpoint's."""

    def __init__(self, task: Any, is_average: bool = False) -> None:
        self.tensors = dict(task.named_parameters())
        self.buffers = dict(task.named_buffers())
        self.is_average = is_average

    def read(self, name: str, into: Tensor) -> None:
        into.copy_((self.tensors | self.buffers)[name].detach())


@contextmanager
def checkpoint_of(task: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[None]:
    @contextmanager
    def exported_weights(source: Path) -> Iterator[Weights]:
        yield Weights(task, **options)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "exported_weights", exported_weights)
        yield


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("model", MODELS)
def test_export_in_parts_is_that_of_the_whole_model(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = ModelConfig.model_validate(MODELS[model])
    task = build(section)
    for tensor in (*task.parameters(), *persistent(task).values()):
        nn.init.uniform_(tensor) if tensor.is_floating_point() else tensor.data.fill_(7)
    task.model.save_pretrained(tmp_path / "whole")
    with checkpoint_of(task, monkeypatch):
        assert export_in_parts(Path("step"), lambda: build(section), tmp_path / "parts", shard_bytes=3000)
    wanted, found = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        assert torch.equal(value, found[name]), name
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == wanted.keys()
    others = {path: (tmp_path / path).read_text() for path in ("whole/config.json", "parts/config.json")}
    assert others["whole/config.json"] == others["parts/config.json"]
    loaded, report = type(task.model).from_pretrained(tmp_path / "parts", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for (name, value), other in zip(task.model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_no_more_than_a_shard_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By counting storages. The largest tensor has 64 x 256 elements."""
    section = ModelConfig.model_validate({"kind": "masked-lm", "config": {**families.keys("bert"), **LARGER}})
    task = build(section)
    total, shard = 4 * sum(p.numel() for p in task.parameters()), 200_000
    with checkpoint_of(task, monkeypatch), LiveBytes(known=task.parameters()) as live:
        assert export_in_parts(Path("step"), lambda: build(section), tmp_path, shard_bytes=shard)
    assert 4 * 64 * 256 < live.peak <= shard < total / 5
    sizes = [file.stat().st_size for file in tmp_path.glob("*.safetensors")]
    assert len(sizes) > 5
    assert transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).num_parameters() == task.model.num_parameters()


def test_tensors_that_are_stored_in_another_form_need_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "bellwether.trainer.export_in_parts.revert_weight_conversion",
        lambda model, tensors: {name: tensor.reshape(-1) for name, tensor in tensors.items()},
    )
    section = ModelConfig.model_validate(MODELS["bert"])
    assert not export_in_parts(Path("step"), lambda: build(section), tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_statistics_of_averaged_weights_need_the_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model, wanted in (("our-own", False), ("bert", True)):
        section = ModelConfig.model_validate(MODELS[model])
        with checkpoint_of(build(section), monkeypatch, is_average=True):
            assert export_in_parts(Path("step"), functools.partial(build, section), tmp_path / model) is wanted
        assert (tmp_path / model).exists() is wanted
