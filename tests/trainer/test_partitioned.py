"""Models built in parts under ZeRO-3: the weights of the other stages, and a bound on what a rank holds meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bellwether.trainer import models
from bellwether.trainer.buffers import persistent
from bellwether.trainer.config import validate
from bellwether.trainer.config.schema import ModelConfig
from bellwether.trainer.data import Dataset
from bellwether.trainer.engine import build, partitioned
from bellwether.trainer.memory import activations
from bellwether.trainer.memory import peak as memory
from bellwether.trainer.memory.live_bytes import LiveBytes
from bellwether.trainer.memory.sharding import Sharding, state_tensors
from bellwether.trainer.models.partitioned import gathered, numel
from bellwether.trainer.phases import Phase, plan
from tests.precision import skip_without
from tests.ranks import Ranks
from tests.tiers import covering
from tests.trainer.models import families
from tests.trainer.runs import images, text

MODELS: dict[str, dict[str, Any]] = {
    "bert-tiny": {"kind": "bert", "size": "tiny"},
    **{family: {"kind": "masked-lm", "config": families.keys(family)} for family in families.ENCODERS},
    **{family: {"kind": "image-classifier", "config": families.classifier(family)} for family in families.CLASSIFIERS},
    "our-own": {
        "kind": "image-classifier",
        "config": {"model_type": "bellwether-cifar-resnet", "depth": 8, "norm": "none"},
    },
}
OF_IMAGES = (*families.CLASSIFIERS, "our-own")


def planned(model: str, workspace: Path, stage: int, precision: str = "fp32") -> tuple[Phase, Dataset]:
    make = images if model in OF_IMAGES else text
    raw = make(workspace, "unused", engine={"stage": stage, "precision": precision})
    config = validate({**raw, "model": MODELS[model]})
    (phase,) = plan([config], torch.distributed.get_world_size(), [1000])
    return phase, dataset()


def dataset(classes: int = 10) -> Dataset:
    samples: Any = None
    return Dataset(samples, samples, 100, 10, 3, [str(i) for i in range(classes)])


def initial(model: str, workspace: Path, stage: int) -> dict[str, torch.Tensor]:
    """The weights of a new model, whole, and whether torch's generator is where it would be."""
    phase, data = planned(model, workspace, stage)
    torch.manual_seed(3)
    with partitioned(phase):
        task = models.build(phase.config.model, data)
    found = {"the next random numbers": torch.rand(4)}
    for name, parameter in task.named_parameters():
        with gathered([parameter]):
            found[name] = parameter.detach().clone()
    return found


@covering(lambda model: model in ("bert-tiny", "modernbert", "our-own"))
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("model", MODELS)
def test_model_built_in_parts_has_the_same_weights(ranks: Ranks, workspace: Path, model: str) -> None:
    whole, parts = (ranks.run(initial, model, workspace, stage) for stage in (2, 3))
    for rank in range(2):
        assert whole[rank].keys() == parts[rank].keys()
        for name, value in whole[0].items():
            assert torch.equal(value, whole[rank][name]), name
            assert torch.equal(value, parts[rank][name]), name


def loaded(init: str, family: str, workspace: Path, stage: int) -> tuple[dict[str, torch.Tensor], int]:
    """The weights of a model with pretrained ones, and the peak of a rank's bytes while they are loaded."""
    phase, data = planned(family, workspace, stage)
    section = phase.config.model.model_copy(update={"init": init, "config": None})
    torch.manual_seed(4)
    live = LiveBytes()
    with live, partitioned(phase):
        task = models.build(section, data)
    found = {}
    for name, parameter in task.named_parameters():
        with gathered([parameter]):
            found[name] = parameter.detach().clone()
    return {**found, **dict(task.named_buffers())}, live.peak


def with_a_new_head(init: str, kind: str, workspace: Path, stage: int) -> dict[str, torch.Tensor]:
    """The weights of a model for fine-tuning, whole, and torch's next random numbers."""
    phase, _ = planned("bert", workspace, stage)
    section = ModelConfig.model_validate({"kind": kind, "init": init})
    torch.manual_seed(4)
    with partitioned(phase):
        task = models.build(section, dataset())
    found = {"the next random numbers": torch.rand(4)}
    for name, parameter in task.named_parameters():
        with gathered([parameter]):
            found[name] = parameter.detach().clone()
    return found


@covering(lambda family: family == "bert")
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("family", [*families.ENCODERS, "resnet"])
def test_head_that_pretrained_weights_lack_is_drawn_alike_in_parts(
    ranks: Ranks, workspace: Path, tmp_path: Path, family: str
) -> None:
    """Of a classifier of images there is one, of other classes."""
    kind = "image-classifier" if family in OF_IMAGES else "sequence-classifier"
    torch.manual_seed(9)
    section = ModelConfig.model_validate(MODELS[family])
    models.build(section, dataset(classes=3)).model.save_pretrained(tmp_path)
    whole, parts = (ranks.run(with_a_new_head, str(tmp_path), kind, workspace, stage) for stage in (2, 3))
    for rank in range(2):
        assert whole[rank].keys() == parts[rank].keys()
        for name, value in whole[0].items():
            assert torch.equal(value, whole[rank][name]), name
            assert torch.equal(value, parts[rank][name]), name


LARGER = {"num_hidden_layers": 8, "hidden_size": 64, "intermediate_size": 256}  # so that tensors outweigh the rest


@covering(lambda family: family in ("bert", "resnet"))
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("family", [*families.ENCODERS, *families.CLASSIFIERS])
def test_pretrained_weights_are_loaded_in_parts(ranks: Ranks, workspace: Path, tmp_path: Path, family: str) -> None:
    torch.manual_seed(9)
    keys = MODELS[family]["config"] | (LARGER if family == "bert" else {})
    section = ModelConfig.model_validate({"kind": MODELS[family]["kind"], "config": keys})
    first = models.build(section, dataset())
    for buffer in persistent(first).values():
        buffer.add_(1)  # BatchNorm's statistics, after training
    first.model.save_pretrained(tmp_path, max_shard_size="100KB")
    whole, parts = (ranks.run(loaded, str(tmp_path), family, workspace, stage) for stage in (2, 3))
    for rank in range(2):
        for name, value in [*first.named_parameters(), *persistent(first).items()]:
            assert torch.equal(value, whole[rank][0][name]), name
            assert torch.equal(value, parts[rank][0][name]), name
    if family == "bert":
        assert parts[0][1] < 0.75 * 4 * sum(p.numel() for p in first.parameters())


def held(model: str, workspace: Path, precision: str) -> dict[str, int]:
    """Bytes that a rank holds: at most while the model is built, and afterwards; and elements of the model and its largest layer."""
    phase, data = planned(model, workspace, 3, precision)
    live = LiveBytes()
    with live, partitioned(phase):
        task = models.build(phase.config.model, data)
    layers = [sum(numel(p) for p in module.parameters(recurse=False)) for module in task.modules()]
    return {
        "peak": live.peak,
        "after": live.bytes,
        "elements": sum(map(numel, task.parameters())),
        "layer": max(layers),
    }


@covering(lambda precision: precision == "fp32")
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rank_holds_its_part_and_one_layer_while_the_model_is_built(
    ranks: Ranks, workspace: Path, precision: str
) -> None:
    """By counting storages: half of the model, in float32, and the largest layer a few times, but never the whole."""
    skip_without(precision, ranks)
    for found in ranks.run(held, "bert-tiny", workspace, precision):
        part, layer = 4 * found["elements"] / 2, 4 * found["layer"]
        assert found["peak"] < part + 3 * layer + 50_000
        assert found["peak"] < 0.8 * 4 * found["elements"]
        assert found["after"] < (part if precision == "fp32" else part / 2) + 50_000


def started(model: str, workspace: Path) -> list[int]:
    """Peak bytes of a rank from nothing to an engine, and the elements that the engine trains, and those of the model."""
    from bellwether.trainer.distributed import World

    phase, data = planned(model, workspace, 3)
    live = LiveBytes()
    with live:
        with partitioned(phase):
            task = models.build(phase.config.model, data)
        engine = build(task, phase, World(torch.distributed.get_rank(), 2, 0, torch.device("cpu")))
    counts = [live.peak, sum(count.elements for count in engine.groups), sum(map(numel, task.parameters()))]
    engine.destroy()
    return counts


def estimated(model: dict[str, Any], workspace: Path) -> tuple[activations.Profile, int, int]:
    """The planner's profile, and its bytes of a rank of two between steps and at the peak of a step."""
    config = validate({**text(workspace, "unused", engine={"stage": 3}), "model": model})
    profile = activations.measure(config, dataset(), on_gpu=False)
    states = state_tensors(config, profile)
    sharding = Sharding.from_config(config, states, profile.elements, world_size=2, on_gpu=False)
    between, peak = memory.resident(profile, sharding, 2), memory.peak(profile, sharding, 2, config.batch.micro, 4)
    return profile, int(between.total), int(peak.total)


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_starting_takes_no_more_memory_than_training(ranks: Ranks, workspace: Path) -> None:
    _, between, peak = estimated(MODELS["bert-tiny"], workspace)
    for found, trained, elements in ranks.run(started, "bert-tiny", workspace):
        assert trained == elements > 400_000
        assert found < peak
        assert found < 1.2 * between  # buffers of DeepSpeed exist from the start, moments from the first step


BILLION = {
    "model_type": "bert", "hidden_size": 1600, "num_hidden_layers": 32, "num_attention_heads": 25, "intermediate_size": 6400,
    "vocab_size": 32000,
}  # fmt: skip


def test_encoder_of_a_billion_parameters_is_built_within_what_its_training_takes(workspace: Path) -> None:
    """By the bound that `test_rank_holds_its_part_and_one_layer_while_the_model_is_built` measures. Nothing is allocated."""
    model = {"kind": "masked-lm", "config": BILLION}
    with FakeTensorMode():
        task = models.build(ModelConfig.model_validate(model), dataset())
        layers = [sum(p.numel() for p in module.parameters(recurse=False)) for module in task.modules()]
        elements = sum(p.numel() for p in task.parameters())
    assert elements > 1e9
    bound = 4 * elements / 2 + 3 * 4 * max(layers) + 50_000
    assert bound < 0.67 * 4 * elements, "no rank holds the whole"
    assert bound < 3 * 4 * elements / 2, (
        "ZeRO-3 holds weights, fp32 masters and gradients of its half, before any moments"
    )
