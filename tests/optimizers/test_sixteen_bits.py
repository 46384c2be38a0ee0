"""The grid of 16-bit weights: every rule on 1, 2 and 4 processes comes to the same weights, and follows its path in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from tests.optimizers.family import FAMILY, REPRESENTATIVES, SHARDED
from tests.ranks import Ranks
from tests.tiers import covering

REMEDIES: list[dict[str, Any]] = [{"stochastic_rounding": True}, {"kahan_sum": True}]
STEPS = 10


def _model(dtype: torch.dtype) -> torch.nn.Module:
    """Sizes that neither 2 nor 4 divides, and a layer with fewer rows than ranks."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(7, 5, bias=False), torch.nn.Linear(5, 9), torch.nn.Linear(9, 3)]
    return torch.nn.Sequential(*layers).bfloat16().to(dtype)


def _trained(rule: str, remedy: dict[str, Any], dtype: torch.dtype) -> list[np.ndarray]:
    """Whole weights after some steps with gradients that do not depend on the number of ranks."""
    model, member = _model(dtype), FAMILY[rule]
    if dist.is_initialized() and dist.get_world_size() > 1:
        fully_shard(model)
    optimizer = member.make([{**group, **remedy} for group in _groups(member, model)], lr=member.lr / 4)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        for p in model.parameters():
            gradient = torch.randn(p.shape, generator=generator).add_(0.5).bfloat16().to(dtype)
            p.grad = _sharded_like(gradient, p)
        optimizer.step()
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return [w.detach().double().numpy().copy() for w in whole]


def _groups(member: Any, model: torch.nn.Module) -> list[dict[str, Any]]:
    found = member.groups([{"params": list(model.named_parameters())}])
    return list(found)


def _sharded_like(g: torch.Tensor, p: Any) -> torch.Tensor:
    if not hasattr(p, "placements"):
        return g
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(g, p.device_mesh, p.placements)


@covering(lambda rule, ranks: rule in REPRESENTATIVES and ranks == 2)
@pytest.mark.parametrize("ranks", [2, 4], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("remedy", REMEDIES, ids=["stochastic", "kahan"])
@pytest.mark.parametrize("rule", SHARDED)
def test_weights_do_not_depend_on_the_number_of_ranks(
    ranks: Ranks, rule: str, remedy: dict[str, Any], dtype: torch.dtype
) -> None:
    """To the bit: which way a weight is rounded follows from its place in the parameter, and sums are in float64."""
    wanted = _trained(rule, remedy, dtype)
    for result in ranks.run(_trained, rule, remedy, dtype):
        assert all(np.array_equal(a, b) for a, b in zip(result, wanted, strict=True))


@covering(lambda rule: rule in REPRESENTATIVES or rule == "swats")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("remedy", REMEDIES, ids=["stochastic", "kahan"])
@pytest.mark.parametrize("rule", SHARDED)
def test_weights_follow_their_path_in_float32(rule: str, remedy: dict[str, Any], dtype: torch.dtype) -> None:
    """Kahan's sums are off by a rounding or two; stochastic rounding walks at random, a neighbour in each step."""
    steps = 2 if "kahan_sum" in remedy else 4 * STEPS**0.5
    exact = _trained(rule, {}, torch.float32)
    for found, wanted in zip(_trained(rule, remedy, dtype), exact, strict=True):
        assert np.abs(found - wanted).max() <= steps * torch.finfo(dtype).eps * np.abs(wanted).max()
