"""fp16 with a dynamic loss scale: an overflow on one rank skips the step on all ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from bellwether.optimizers import Lamb
from tests.optimizers import sharded
from tests.precision import skip_without
from tests.ranks import Ranks
from tests.tiers import covering

SCALE = 2.0**10


def _deepspeed(rule: str, stage: int) -> dict[str, Any]:
    fp16 = {"enabled": True, "initial_scale_power": 10, "hysteresis": 1, "loss_scale_window": 1000}
    ds_engine, optimizer = sharded.engine(rule, {"stage": stage}, fp16=fp16)
    sharded.feed(ds_engine, 0)
    before = _everything(optimizer)
    share = sharded.GLOBAL_BATCH // dist.get_world_size()
    batch = {k: torch.tensor(v[:share]) for k, v in sharded.targets(1).items()}
    if dist.get_rank() == 1:
        batch = {k: torch.full_like(v, 1e5) for k, v in batch.items()}  # overflows fp16
    ds_engine.backward(ds_engine(batch))
    ds_engine.step()
    after, scale = _everything(optimizer), _scale(ds_engine)
    for step in range(2, 5):
        sharded.feed(ds_engine, step)
    later = _everything(optimizer)
    ds_engine.destroy()
    return {"skipped": _equal(before, after), "scale": scale, "went on": not _equal(after, later)}


def _everything(optimizer: Any) -> list[np.ndarray]:
    """A copy of this rank's weights and state."""
    tensors = [shard.tensor.detach() for shard in optimizer.shards]
    tensors += [value for shard in optimizer.shards for value in optimizer.state[shard.tensor].values()]
    return [np.array(list(optimizer.trust_ratios().values())), *(t.double().numpy().copy() for t in tensors)]


def _equal(some: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(some, others, strict=True))


def _scale(ds_engine: Any) -> float:
    wrapper = ds_engine.optimizer
    return wrapper.loss_scale_config.cur_scale if hasattr(wrapper, "loss_scale_config") else wrapper.loss_scale


@covering(lambda rule, ranks: rule == "lamb" and ranks == 2)
@pytest.mark.parametrize("ranks", [2, 4], indirect=True)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("rule", ["lamb", "lars", "adamw"])
def test_deepspeed(ranks: Ranks, rule: str, stage: int) -> None:
    skip_without("fp16", ranks)
    for result in ranks.run(_deepspeed, rule, stage):
        assert result == {"skipped": True, "scale": SCALE / 2, "went on": True}


def _fsdp2() -> dict[str, Any]:
    """torch's GradScaler with DTensors: it reduces found_inf over the mesh before step()."""
    model = sharded.Toy()
    fully_shard(model)
    optimizer = Lamb(sharded.param_groups(model), lr=0.02)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=1000)
    found = []
    for step in range(4):
        batch = {k: torch.tensor(v[:1]) for k, v in sharded.targets(step).items()}
        scaler.scale(model(batch)).backward()
        if step == 1 and dist.get_rank() == dist.get_world_size() - 1:
            big = model.big.weight.grad.to_local()
            big[:] = float("inf")  # only in this rank's shard
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        weights = np.concatenate([p.detach().to_local().numpy().ravel() for p in model.parameters()])
        found.append((weights.copy(), scaler.get_scale()))
    return {"found": found}


def test_fsdp2_with_grad_scaler(ranks: Ranks) -> None:
    for result in ranks.run(_fsdp2):
        (first, _), (second, scale), (third, _), (fourth, _) = result["found"]
        assert np.array_equal(first, second)
        assert scale == SCALE / 2
        assert np.isfinite(fourth).all()
        assert not len(first) or (not np.array_equal(second, third) and not np.array_equal(third, fourth))
