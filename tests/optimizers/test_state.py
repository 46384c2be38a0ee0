"""State saved by torch: state_dict, copies, and distributed checkpoints under FSDP2."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from tests.optimizers import sharded
from tests.optimizers.family import FAMILY
from tests.optimizers.test_sharded import check
from tests.ranks import Ranks
from tests.tiers import covering

HALF = sharded.STEPS // 2


def _fresh(rule: str) -> tuple[sharded.Toy, Any]:
    model = sharded.Toy()
    return model, FAMILY[rule].make(FAMILY[rule].groups(sharded.param_groups(model)), FAMILY[rule].lr)


def _train(model: Any, optimizer: Any, steps: range, part: int = 0, parts: int = 1) -> None:
    share = sharded.GLOBAL_BATCH // parts
    for step in steps:
        batch = {k: torch.tensor(v[part * share : (part + 1) * share]) for k, v in sharded.targets(step).items()}
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()


def _weights(optimizer: Any) -> list[torch.Tensor]:
    return [p.detach() for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("copying", ["state_dict", "deepcopy", "pickle"])
@pytest.mark.parametrize("rule", FAMILY)
def test_copies_take_the_same_steps_bitwise(rule: str, copying: str) -> None:
    model, optimizer = _fresh(rule)
    _train(model, optimizer, range(HALF))
    if copying == "state_dict":
        other_model, other = _fresh(rule)
        other_model.load_state_dict(model.state_dict())
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        both = (
            copy.deepcopy((model, optimizer))
            if copying == "deepcopy"
            else pickle.loads(pickle.dumps((model, optimizer)))
        )
        other_model, other = both
    _train(model, optimizer, range(HALF, sharded.STEPS))
    _train(other_model, other, range(HALF, sharded.STEPS))
    for some, others in zip(_weights(optimizer), _weights(other), strict=True):
        assert torch.equal(some, others)
    for state, others in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert state.keys() == others.keys()
        assert all(torch.equal(state[key], others[key]) for key in state)
    assert other.scalars() == optimizer.scalars()


def _through_dcp(rule: str, folder: str, save: bool) -> dict[str, Any]:
    model = sharded.Toy()
    fully_shard(model)
    optimizer = FAMILY[rule].make(FAMILY[rule].groups(sharded.param_groups(model)), FAMILY[rule].lr)
    part, parts = dist.get_rank(), dist.get_world_size()
    if save:
        _train(model, optimizer, range(HALF), part, parts)
        weights, state = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
        return {}
    weights, state = get_state_dict(model, optimizer)
    whole = {"model": weights, "optimizer": state}
    dcp.load(whole, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=whole["model"], optim_state_dict=whole["optimizer"])
    _train(model, optimizer, range(HALF, sharded.STEPS), part, parts)
    found = _found(model, optimizer)
    with sharded.averaged(optimizer):
        found["averaged"] = _found(model, optimizer)
    return {**found, "ratios": {k.removesuffix(".weight"): v for k, v in optimizer.trust_ratios().items()}}


def _found(model: Any, optimizer: Any) -> dict[str, Any]:
    whole = {n.removesuffix(".weight"): p.full_tensor().detach() for n, p in model.named_parameters()}
    return {"owned": sharded.owned(optimizer), "model": {n: w.double().numpy().copy() for n, w in whole.items()}}


CARRIED = ["lamb", "lars", "adamw-amsgrad", "muon", "schedule-free-adamw"]


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The first half of each run, in two processes."""
    root = str(tmp_path_factory.mktemp("dcp"))
    pair = Ranks(2)
    for rule in CARRIED:
        pair.run(_through_dcp, rule, f"{root}/{rule}", True)
    yield root
    pair.close()


@covering(lambda rule, ranks: ranks == 2)
@pytest.mark.parametrize("ranks", [2, 4], indirect=True)
@pytest.mark.parametrize("rule", CARRIED)
def test_fsdp2_distributed_checkpoint(ranks: Ranks, halves: str, rule: str) -> None:
    check(ranks.run(_through_dcp, rule, f"{halves}/{rule}", False), rule)
