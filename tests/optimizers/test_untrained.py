"""Optimizers that would train nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from bellwether.optimizers import Lamb, groups
from tests.optimizers import sharded
from tests.ranks import Ranks


def step(model: nn.Module, optimizer: Any) -> None:
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("params", [groups, lambda m: m.parameters(), lambda m: m.named_parameters()])
def test_replaced_parameters_are_refused(params: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    optimizer = Lamb(params(model))
    for layer in model:
        layer.weight = nn.Parameter(layer.weight.detach().clone())
        layer.bias = nn.Parameter(layer.bias.detach().clone())
    with pytest.raises(RuntimeError, match="never had a gradient"):
        step(model, optimizer)


def test_weights_assigned_after_the_state_was_loaded_are_refused() -> None:
    """Of a resumed run: the optimizer has the state of parameters that load_state_dict(assign=True) has taken out of the model."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    optimizer = Lamb(groups(model))
    step(model, optimizer)
    saved = {name: w.detach().clone() for name, w in model.state_dict().items()}
    resumed = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    other = Lamb(groups(resumed))
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(saved)
    step(resumed, other)
    late = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    other = Lamb(groups(late))
    other.load_state_dict(optimizer.state_dict())
    late.load_state_dict(saved, assign=True)
    with pytest.raises(RuntimeError, match=r"load_state_dict\(assign=True\)"):
        step(late, other)


def test_resumed_optimizer_of_another_part_of_the_model_is_accepted() -> None:
    """One of two optimizers of a model has no gradients in a step, and the other trains a layer of the same shape."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    first, second = (Lamb(layer.parameters()) for layer in model)
    step(model, first)
    second.step()
    again = Lamb(model[1].parameters())
    again.load_state_dict(second.state_dict())
    again.zero_grad()
    step(model[0], first)
    again.step()


def test_unused_and_frozen_parameters_are_accepted() -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 3), "frozen": nn.Linear(4, 4)})
    model["frozen"].requires_grad_(False)
    optimizer = Lamb([{"params": list(layer.parameters())} for layer in model.values()])
    step(model["used"], optimizer)


def _before_fully_shard() -> str:
    model = sharded.Toy()
    optimizer = Lamb(groups(model))
    fully_shard(model)
    try:
        model({k: torch.tensor(v[:1]) for k, v in sharded.targets(0).items()}).backward()
        optimizer.step()
    except RuntimeError as error:
        return str(error)
    return "trained"


def _unfrozen(stage: int) -> str:
    engine, _ = sharded.engine("lamb", {"stage": stage})
    try:
        sharded.feed(engine, 0)
        engine.module.frozen.weight.requires_grad_(True)
        sharded.feed(engine, 1)
    except RuntimeError as error:
        return str(error)
    finally:
        engine.destroy()
    return "trained"


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_optimizer_before_fully_shard_and_late_unfreezing_are_refused(ranks: Ranks) -> None:
    assert all("made before fully_shard()" in answer for answer in ranks.run(_before_fully_shard))
    assert all("frozen.weight (1 parameters) were frozen" in answer for answer in ranks.run(_unfrozen, 2))
