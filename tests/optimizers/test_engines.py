"""Sharded equals unsharded under torch's own engines: DDP, FSDP2 in one and two dimensions, ZeroRedundancyOptimizer.

The model, tolerance and float64 reference are those of test_sharded.py, which tests DeepSpeed.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard as ShardOf
from torch.distributed.tensor import distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from bellwether.optimizers import attach
from tests.optimizers import sharded
from tests.optimizers.family import FAMILY, REPRESENTATIVES, SHARDED
from tests.optimizers.test_sharded import check, expected, groups_with_ratio
from tests.ranks import Ranks
from tests.tiers import covering

COLUMNS = ("big", "odd")  # sharded along their second dimension under tensor parallelism


def _parallel(engine: str) -> tuple[nn.Module, nn.Module, int, int]:
    """The toy model under an engine: (the model, the module to call, index and number of the parts of a batch)."""
    model, world, rank = sharded.Toy(), dist.get_world_size(), dist.get_rank()
    if engine in ("ddp", "zero-redundancy"):
        return model, DistributedDataParallel(model), rank, world
    if engine == "fsdp2":
        for leaf in model.children():
            if leaf is not model.twin and leaf is not model.tied:  # tied parameters belong to the root
                fully_shard(leaf)
        fully_shard(model)
        return model, model, rank, world
    rows = 2 if world > 1 else 1
    if engine == "hsdp":  # replicated shards
        fully_shard(model, mesh=init_device_mesh("cpu", (rows, world // rows), mesh_dim_names=("replicate", "shard")))
        return model, model, rank, world
    if engine == "fsdp2-flattened":  # as with context parallelism: sharded over two mesh dimensions flattened into one
        mesh = init_device_mesh("cpu", (rows, world // rows), mesh_dim_names=("dp", "cp"))["dp", "cp"]._flatten("dp_cp")
        fully_shard(model, mesh=mesh)
        return model, model, rank, world
    mesh = init_device_mesh("cpu", (world // rows, rows), mesh_dim_names=("dp", "tp"))
    for name in ("big", "odd", "vector", "zero"):
        leaf = getattr(model, name)
        cut = ShardOf(1 if name in COLUMNS else 0)
        leaf.weight = nn.Parameter(distribute_tensor(leaf.weight.detach(), mesh["tp"], [cut]))
    fully_shard(model, mesh=mesh["dp"])
    return model, model, mesh.get_local_rank("dp"), mesh["dp"].size()


def _train(rule: str, engine: str) -> dict[str, Any]:
    model, called, part, parts = _parallel(engine)
    member = FAMILY[rule]
    groups = member.groups(sharded.param_groups(model))
    if engine == "zero-redundancy":
        for group in groups:
            group["params"] = [p for _, p in group["params"]]
        outer = ZeroRedundancyOptimizer(groups, optimizer_class=_Factory(member.make), lr=member.lr)
        optimizer = attach(outer)
        assert optimizer is outer.optim
    else:
        outer = optimizer = member.make(groups, member.lr)
    calls, reduces = sharded._count(optimizer)
    share = sharded.GLOBAL_BATCH // parts
    for step in range(sharded.STEPS):
        batch = {k: torch.tensor(v[part * share : (part + 1) * share]) for k, v in sharded.targets(step).items()}
        outer.zero_grad()
        called(batch).mean().backward()
        outer.step()
    names = {p: n.removesuffix(".weight") for n, p in model.named_parameters()}
    result = {
        **_weights(optimizer, model, names),
        "calls": len(calls),
        "reduces": len(reduces),
        "matrices": any(group.get("muon") for group in optimizer.param_groups),
        "ratios": {_name(k, optimizer, names): v for k, v in optimizer.trust_ratios().items()},
    }
    if engine == "zero-redundancy":
        result["mine"] = set(result["owned"])
    with sharded.averaged(optimizer):
        result["averaged"] = _weights(optimizer, model, names)
    return result


class _Factory:
    """ZeroRedundancyOptimizer requires an optimizer class with a __name__."""

    def __init__(self, make: Any) -> None:
        self.make, self.__name__ = make, "Member"

    def __call__(self, params: Any, lr: float) -> Any:
        return self.make(params, lr)


def _name(name: str, optimizer: Any, names: dict[Any, str]) -> str:
    """ZeroRedundancyOptimizer passes no names, so its parameters are numbered."""
    if name.removesuffix(".weight") in names.values():
        return name.removesuffix(".weight")
    return next(names[s.tensor] for s in optimizer.shards if s.parameters[0].name == name)


def _weights(optimizer: Any, model: nn.Module, names: dict[Any, str]) -> dict[str, Any]:
    owned: dict[str, list[tuple[int, np.ndarray]]] = {}
    for shard in optimizer.shards:
        for parameter_slice, view in shard.views(shard.tensor.detach()):
            owned.setdefault(names[shard.tensor], []).append((parameter_slice.start, view.double().numpy().copy()))
    whole = {n: p.detach() for p, n in names.items()}
    whole = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in whole.items()}
    return {"owned": owned, "model": {n: p.double().numpy().copy() for n, p in whole.items()}}


@covering(lambda rule, engine, ranks: rule in REPRESENTATIVES or (engine == "fsdp2" and ranks == 2))
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "hsdp", "fsdp2-tp", "zero-redundancy"])
@pytest.mark.parametrize("rule", SHARDED)
def test_torch_engines(ranks: Ranks, rule: str, engine: str) -> None:
    results = ranks.run(_train, rule, engine)
    check(results, rule)
    split = engine in ("fsdp2", "hsdp", "fsdp2-tp")
    adapts = bool(expected(rule).ratios)
    for result in results:
        assert result["calls"] == sharded.STEPS
        if split:
            # One for all trust ratios, one more for the global gradient norm, one for Swats until it switches.
            wanted = sharded.STEPS * (adapts + (rule == "nvlamb")) + 2 * (rule == "swats")
            wanted += result["matrices"] * (2 * sharded.STEPS + 2)  # all-to-alls, and all-gathers before the first
            assert result["reduces"] == wanted
        elif engine == "ddp":
            assert result["reduces"] == 0
    assert groups_with_ratio() > 1


@pytest.mark.parametrize("ranks", [4], indirect=True)
@pytest.mark.parametrize("rule", ["lamb", "nvlamb"])
def test_flattened_mesh(ranks: Ranks, rule: str) -> None:
    check(ranks.run(_train, rule, "fsdp2-flattened"), rule)


def _sequence_parallel() -> tuple[list[float], list[float]]:
    """A replicated DTensor with a partial gradient, as after a LayerNorm under SequenceParallel."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    from bellwether.optimizers import SGD

    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    found = []
    for kind in (SGD, torch.optim.SGD):
        weight = nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Replicate()]))
        mine = torch.arange(3.0) * (dist.get_rank() + 1)
        weight.grad = DTensor.from_local(mine, mesh, [Partial()])
        kind([weight], lr=0.1).step()
        found.append(weight.full_tensor().tolist())
    return found[0], found[1]


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_partial_gradients_are_reduced(ranks: Ranks) -> None:
    for partial, whole in ranks.run(_sequence_parallel):
        assert partial == pytest.approx(whole)
        assert partial[2] == pytest.approx(1 - 0.1 * 2 * 3)


def _refused(case: str) -> str:
    from torch.distributed.fsdp import FullyShardedDataParallel

    from bellwether.optimizers import AdamW, Lamb, Swats, WeightAverage

    model = nn.Linear(4, 4)
    if case == "fsdp1":
        model = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
        optimizer: Any = Lamb(model.parameters())
    else:
        make = {
            "nvlamb": lambda p, lr: Lamb(p, prenormalize=True),
            "swats": lambda p, lr: Swats(AdamW(p)),
            "average": lambda p, lr: WeightAverage(AdamW(p)),
            "lamb": lambda p, lr: Lamb(p),
        }[case]
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=_Factory(make), lr=0.1)
    model(torch.ones(2, 4)).sum().backward()
    try:
        optimizer.step()
        if case == "average":
            with optimizer.optim.averaged():
                pass
    except (RuntimeError, NotImplementedError) as error:
        return str(error)
    return ""


REFUSED = {
    "fsdp1": r"use fully_shard \(FSDP2\)",
    "nvlamb": r"inside ZeroRedundancyOptimizer needs the sums of all ranks: call optimizers.attach",
    "swats": r"inside ZeroRedundancyOptimizer needs the sums of all ranks: call optimizers.attach",
    "average": r"averaged\(\) inside ZeroRedundancyOptimizer: call optimizers.attach",
    "lamb": "^$",  # updates whole parameters and needs no sums, so no attach
}


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("case", REFUSED)
def test_unattached_global_sums_are_refused(ranks: Ranks, case: str) -> None:
    for message in ranks.run(_refused, case):
        assert re.search(REFUSED[case], message), message
