"""State that is wider than its weights, and state that is needed later, through every way of saving and loading."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from bellwether.optimizers import SGD, AdamW, Lookahead, Swats, WeightAverage, attach
from tests.optimizers import sharded
from tests.optimizers.configurations import save_and_load
from tests.ranks import Ranks
from tests.tiers import covering


def bf16(value: float = 3.0) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.full((4,), value, dtype=torch.bfloat16))


def ema(p: torch.nn.Parameter) -> WeightAverage:
    return WeightAverage(SGD([p], lr=0.0), "ema", decay=0.9999)


def train(optimizer: Any, steps: int) -> None:
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        optimizer.step()


def _through_state_dict(optimizer: Any, p: torch.nn.Parameter) -> tuple[Any, torch.nn.Parameter]:
    q = torch.nn.Parameter(p.detach().clone())
    other = ema(q)
    other.load_state_dict(save_and_load(optimizer.state_dict(), weights_only=True))
    return other, q


def _copied(copier: Callable[[Any], Any]) -> Callable[[Any, Any], tuple[Any, Any]]:
    def through(optimizer: Any, p: torch.nn.Parameter) -> tuple[Any, torch.nn.Parameter]:
        other = copier(optimizer)
        return other, other.param_groups[0]["params"][0]

    return through


WAYS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "state_dict": _through_state_dict,
    "deepcopy": _copied(copy.deepcopy),
    "pickle": _copied(lambda o: pickle.loads(pickle.dumps(o))),
}


@pytest.mark.parametrize("way", WAYS)
def test_average_of_16_bit_weights_moves_after_a_resume(way: str) -> None:
    """Rounded to bf16, an average with decay 0.9999 stands still."""
    p = bf16()
    optimizer = ema(p)
    train(optimizer, 1)
    with torch.no_grad():
        p.fill_(4.0)
    train(optimizer, 2000)
    other, q = WAYS[way](optimizer, p)
    train(optimizer, 2000)
    train(other, 2000)
    assert other.state[q]["average"].dtype == torch.float32
    assert torch.equal(other.state[q]["average"], optimizer.state[p]["average"])
    assert other.state[q]["average"][0].item() == pytest.approx(4 - 0.9999**4000, rel=1e-4)


def test_rounded_average_of_an_older_version_is_widened() -> None:
    p = bf16()
    optimizer = ema(p)
    train(optimizer, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["average"] = saved["state"][0]["average"].bfloat16()
    optimizer.load_state_dict(saved)
    assert optimizer.state[p]["average"].dtype == torch.float32


def test_slow_weights_of_16_bit_weights_move() -> None:
    """Steps of 1 % of the way from 3 to 3.5 are below half a unit of bf16."""
    p = bf16()
    optimizer = Lookahead(SGD([p], lr=0.0), k=1, alpha=0.01)
    train(optimizer, 1)
    for _ in range(100):
        with torch.no_grad():
            p.fill_(3.5)
        train(optimizer, 1)
    assert optimizer.state[p]["slow"][0].item() == pytest.approx(3.5 - 0.5 * 0.99**100, rel=1e-3)


def test_hooks_of_users_see_and_change_what_is_loaded() -> None:
    p = bf16()
    optimizer = ema(p)
    train(optimizer, 1)
    saved = optimizer.state_dict()

    def double(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        changed = copy.deepcopy(given)
        changed["state"][0]["average"] = torch.full((4,), 3.0001)
        return changed

    optimizer.register_load_state_dict_pre_hook(double)
    optimizer.load_state_dict(saved)
    assert optimizer.state[p]["average"][0].item() == pytest.approx(3.0001, rel=1e-6)


LATE: dict[str, Callable[[Any], Any]] = {
    "swa": lambda params: WeightAverage(AdamW(params, lr=0.02), "swa", start=7, every=3),
    "ema": lambda params: WeightAverage(Lookahead(AdamW(params, lr=0.02), k=3), "ema", start=7, decay=0.8),
    "swats": lambda params: Swats(AdamW(params, lr=0.02), tolerance=2e-4),
}


@pytest.mark.parametrize("kind", LATE)
def test_all_state_exists_after_the_first_step(kind: str) -> None:
    """torch's distributed checkpoint loads into the state that one step creates, and no other."""
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = LATE[kind]([p])
    found = []
    for step in range(30):
        p.grad = torch.full_like(p, 0.5)
        optimizer.step()
        found.append(set(optimizer.state[p]))
        if step == 3 and kind != "swats":
            assert not optimizer.has_average
    assert all(names == found[0] for names in found)
    assert kind != "swats" or optimizer.switched


def test_swats_continues_from_a_state_that_an_older_version_saved() -> None:
    """It named SGD's momentum momentum_buffer, and had deleted Adam's moments."""
    p, q = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    optimizer, other = Swats(AdamW([p], lr=0.02), tolerance=2e-4), Swats(AdamW([q], lr=0.02), tolerance=2e-4)
    for _ in range(6):
        p.grad = torch.full_like(p, 0.5)
        optimizer.step()
    assert optimizer.switched
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["momentum_buffer"] = saved["state"][0].pop("exp_avg")
    del saved["state"][0]["exp_avg_sq"]
    with torch.no_grad():
        q.copy_(p)
    other.load_state_dict(saved)
    for _ in range(3):
        p.grad, q.grad = torch.full_like(p, 0.5), torch.full_like(q, 0.5)
        optimizer.step()
        other.step()
    assert torch.equal(p, q)


# --- under FSDP2 and DeepSpeed ---


def _averages(optimizer: Any) -> dict[str, list[tuple[int, Any]]]:
    with sharded.averaged(optimizer):
        return sharded.owned(optimizer)


def _fsdp2(kind: str, folder: str, until: int, resume: bool, dtype: torch.dtype | None = None) -> dict[str, Any]:
    model = sharded.Toy()
    if dtype is not None:
        model.to(dtype)
    fully_shard(model)
    optimizer = LATE[kind](sharded.param_groups(model))
    first = 0
    if resume:
        weights, state = get_state_dict(model, optimizer)
        whole = {"model": weights, "optimizer": state}
        dcp.load(whole, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=whole["model"], optim_state_dict=whole["optimizer"])
        first = 10
    share = sharded.GLOBAL_BATCH // dist.get_world_size()
    for step in range(first, until):
        part = slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)
        optimizer.zero_grad()
        model({k: torch.tensor(v[part]) for k, v in sharded.targets(step).items()}).backward()
        optimizer.step()
    if until == 10:
        weights, state = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    averages = sharded.owned(optimizer) if kind == "swats" else _averages(optimizer)
    dtypes = {s["average"].dtype for s in optimizer.state.values() if "average" in s}
    return {"owned": sharded.owned(optimizer), "averages": averages, "dtypes": {str(d) for d in dtypes}}


def _same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for key in ("owned", "averages"):
        for rank, other in zip(found, expected, strict=True):
            assert rank[key].keys() == other[key].keys()
            for name, slices in rank[key].items():
                for (start, values), (start_there, values_there) in zip(slices, other[key][name], strict=True):
                    assert start == start_there
                    assert (values == values_there).all(), (key, name)


@covering(lambda kind, dtype: (kind, dtype) in (("swa", None), ("swats", None), ("ema", torch.bfloat16)))
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", LATE)
def test_distributed_checkpoint_keeps_late_and_wide_state(ranks: Ranks, tmp_path: Any, kind: str, dtype: Any) -> None:
    """With start=3, an average that DCP dropped was off by 9.8 %."""
    expected = ranks.run(_fsdp2, kind, str(tmp_path), 20, False, dtype)
    ranks.run(_fsdp2, kind, str(tmp_path), 10, False, dtype)
    found = ranks.run(_fsdp2, kind, str(tmp_path), 20, True, dtype)
    _same(found, expected)
    if dtype is not None and kind != "swats":
        assert all(rank["dtypes"] == {"torch.float32"} for rank in found)


def _deepspeed(stage: int, folder: str, until: int, resume: bool) -> dict[str, Any]:
    import deepspeed

    model = sharded.Toy()
    optimizer = LATE["ema"](sharded.param_groups(model))
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "train_batch_size": sharded.GLOBAL_BATCH,
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": stage},
            "bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True},
        },
    )
    attach(engine)
    if resume:
        engine.load_checkpoint(folder, tag="half")
    for step in range(10 if resume else 0, until):
        sharded.feed(engine, step)
    if until == 10:
        engine.save_checkpoint(folder, tag="half")
    dtypes = {str(s["average"].dtype) for s in optimizer.state.values() if "average" in s}
    found = {"owned": sharded.owned(optimizer), "averages": _averages(optimizer), "dtypes": dtypes}
    masters = {str(shard.tensor.dtype) for shard in optimizer.shards}
    engine.destroy()
    return {**found, "masters": masters}


@covering(lambda stage: stage == 2)
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_with_16_bit_masters_keeps_wide_averages(ranks: Ranks, tmp_path: Any, stage: int) -> None:
    expected = ranks.run(_deepspeed, stage, str(tmp_path), 20, False)
    ranks.run(_deepspeed, stage, str(tmp_path), 10, False)
    found = ranks.run(_deepspeed, stage, str(tmp_path), 20, True)
    assert all(rank["masters"] == {"torch.bfloat16"} for rank in found)
    assert all(rank["dtypes"] == {"torch.float32"} for rank in found)
    _same(found, expected)
