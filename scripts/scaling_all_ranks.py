"""All ranks of a very large run, one after the other: their shards tile the model, and their steps equal the reference."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from bellwether.optimizers import Lamb, groups
from bellwether.optimizers.param_groups import named
from bellwether.optimizers.sharded import Attachment, ShardedOptimizer
from bellwether.optimizers.shards import deepspeed as deepspeed_shards
from bellwether.optimizers.shards import dtensor
from bellwether.optimizers.shards.layout import ShardLayout, local
from scripts.scaling_one_rank import as_rank, fingerprint, initialize, shard_fully
from scripts.scaling_reference import Truth, prime, some

# The engines whose steps are computed for all ranks; the others shard in the same way.
LAYOUTS = ("ZeRO-1", "ZeRO-3", "FSDP2")
LARGEST_STEP = {"FSDP2": 512}  # a rank has a tensor for each parameter there, and 4,096 of them take too long


def all_ranks(model: nn.Module, engine: str, world: int, truth: Truth) -> dict[str, Any]:
    """Compute every rank's shards as the engine does, check that they tile the model, and run one step of each."""
    as_rank(0, world)
    layouts = layouts_of(model, engine, world, Lamb(groups(model)))
    found: dict[str, Any] = {
        "slices": sum(len(shard.slices) for shards in layouts for shard in shards),
        "idle": sum(not any(shard.slices for shard in shards) for shards in layouts),
        "cuts": {rank: fingerprint(layouts[rank]) for rank in some(world)},
    }
    _check_tiles(layouts, truth)
    if world <= LARGEST_STEP.get(engine, world):
        found |= _steps(layouts, truth)
    return found


def layouts_of(model: nn.Module, engine: str, world: int, optimizer: ShardedOptimizer) -> list[list[ShardLayout]]:
    """The shards of each rank."""
    if engine == "FSDP2":
        return _fsdp_layouts(model, world, [name for group in optimizer.param_groups for name in group["param_names"]])
    return _zero_layouts(model, engine, world, optimizer)


def _zero_layouts(model: nn.Module, engine: str, world: int, optimizer: ShardedOptimizer) -> list[list[ShardLayout]]:
    """What `attach` finds on each rank, from the engine of rank 0: only the rank differs."""
    ds_engine = initialize(model, optimizer, engine, world)
    layouts = []
    for rank in range(world):
        this_rank = SimpleNamespace(get_rank=lambda _, rank=rank: rank)
        with mock.patch.multiple(deepspeed_shards, dist=this_rank, verify=mock.DEFAULT):  # _check_tiles does it
            layouts.append(list(deepspeed_shards.attachment(ds_engine).shards))
    return layouts


class _RemoteDTensor:
    """A DTensor of another rank without its elements: of the rank that its mesh is set to."""

    __class__ = DTensor  # type: ignore[assignment]  # isinstance() takes it for one

    def __init__(self, parameter: Any) -> None:
        self.device_mesh, self.placements, self.shape = parameter.device_mesh, parameter.placements, parameter.shape
        shape, _ = compute_local_shape_and_global_offset(self.shape, self.device_mesh, self.placements)
        self.local = torch.empty(shape, device="meta")

    def to_local(self) -> Tensor:
        return self.local


def _fsdp_layouts(model: nn.Module, world: int, order: list[str]) -> list[list[ShardLayout]]:
    shard_fully(model, world)
    parameters: dict[str, Any] = dict(named(model))
    names = [(name, parameters[name]) for name in order]
    meshes = {id(p.device_mesh): p.device_mesh for _, p in names}
    layouts = []
    for rank in range(world):
        for mesh in meshes.values():
            mesh._coordinate_on_dim = (rank,)
        layouts.append(dtensor.shards({_RemoteDTensor(p): name for name, p in names}))  # type: ignore[misc]
    return layouts


def _check_tiles(layouts: list[list[ShardLayout]], truth: Truth) -> None:
    """Each element of each parameter belongs to exactly one rank."""
    runs: dict[str, list[tuple[int, int]]] = {name: [] for name in truth.weights}
    for shards in layouts:
        for shard in shards:
            for parameter_slice in shard.slices:
                runs[shard.parameters[parameter_slice.index].name].append(
                    (parameter_slice.start, parameter_slice.length)
                )
    for name, found in runs.items():
        end = 0
        for start, length in sorted(found):
            assert start == end, (
                f"{name}: element {min(start, end)} belongs to {'two ranks' if start < end else 'none'}"
            )
            end += length
        assert end == truth.weights[name].numel(), f"{name}: its end belongs to no rank"


def _steps(layouts: list[list[ShardLayout]], truth: Truth) -> dict[str, Any]:
    """The step() of each rank, twice: first to sum the inputs of the all-reduce, then with its result."""
    sums: list[Tensor] = []

    def give(tensor: Tensor, **_: Any) -> None:
        sums.append(tensor.clone()) if not sums else sums[0].add_(tensor)

    def take(tensor: Tensor, **_: Any) -> None:
        tensor.copy_(sums[0])

    flat = {name: (w.view(-1), truth.gradients[name].view(-1)) for name, w in truth.weights.items()}
    ratios: dict[str, float] = {}
    differ, worst = 0, 0.0
    for all_reduce in (give, take):
        for shards in layouts:
            mine = [_filled(shard, flat) for shard in shards]
            optimizer = Lamb([{"params": [s.tensor], **truth.options[s.parameters[0].name]} for s, _ in mine])
            optimizer.use(Attachment([shard for shard, _ in mine]))
            for shard, gradient in mine:
                prime(optimizer, shard.tensor, gradient)
            with mock.patch.object(dist, "all_reduce", all_reduce):
                optimizer.step()
            if all_reduce is give:
                continue
            assert not ratios or ratios == optimizer.trust_ratios(), "two ranks have different trust ratios"
            ratios = optimizer.trust_ratios()
            for shard, _ in mine:
                for parameter_slice, view in shard.views(shard.tensor.detach()):
                    wanted = truth.moved[shard.parameters[parameter_slice.index].name].view(-1)[
                        parameter_slice.start :
                    ][: parameter_slice.length]
                    if not torch.equal(view, wanted):
                        off = (view - wanted).abs()
                        assert not off.isnan().any()
                        differ += int(off.count_nonzero())
                        worst = max(worst, float(off.max()))
    assert ratios.keys() == truth.ratios.keys()
    error = max(abs(ratios[name] / wanted - 1) for name, wanted in truth.ratios.items())
    # float64 sums in another order: about 1e-16 each. A rank omitted or counted twice is far larger.
    assert error < 1e-12, f"trust ratios are off by {error}"
    return {"error": error, "differ": differ, "worst": worst, "ratios": len(ratios)}


def _filled(shard: ShardLayout, flat: dict[str, tuple[Tensor, Tensor]]) -> tuple[ShardLayout, Tensor]:
    """A shard with its weights and gradients, and NaN in the padding."""
    weights, gradients = torch.full((2, local(shard.tensor).numel()), float("nan")).unbind()
    for parameter_slice in shard.slices:
        for target, source in zip(
            (weights, gradients), flat[shard.parameters[parameter_slice.index].name], strict=True
        ):
            target[parameter_slice.offset : parameter_slice.offset + parameter_slice.length] = source[
                parameter_slice.start : parameter_slice.start + parameter_slice.length
            ]
    return replace(shard, tensor=weights), gradients
