"""One rank of a very large run, with a real engine: how many collectives, bytes and tables an update takes."""

from __future__ import annotations

import hashlib
import os
import resource
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any
from unittest import mock

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from bellwether.optimizers import Lamb, ShardedOptimizer, attach, groups
from bellwether.optimizers.shards import verification
from bellwether.optimizers.shards.layout import ShardLayout, local

ENGINES: dict[str, dict[str, Any]] = {
    "ZeRO-1": {"stage": 1},
    "ZeRO-2": {"stage": 2},
    "ZeRO-3": {"stage": 3},
    "ZeRO-3 in sub-groups": {"stage": 3},
    "FSDP2": {},
}


def as_rank(rank: int, world: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="1")
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())


def one_rank(model: nn.Module, engine: str, world: int, rank: int) -> dict[str, Any]:
    """Create the engine as this rank, attach, run the step() calls of one update, and count."""
    as_rank(rank, world)
    if engine == "FSDP2":
        shard_fully(model, world)
        optimizer = Lamb(groups(model))
        started = time.perf_counter()
        shards = optimizer.shards
        attached = time.perf_counter() - started
        python_bytes = _python_bytes(lambda: Lamb(groups(model)).shards)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        calls: list[Callable[[], Any]] = [optimizer.step]
    else:
        optimizer = Lamb(groups(model))
        ds_engine = initialize(model, optimizer, engine, world)
        # The fake process group sums nothing, so the verification of the coverage is run and its result is ignored.
        with mock.patch.object(verification, "_problems", return_value=[]):
            started = time.perf_counter()
            attach(ds_engine)
            attached = time.perf_counter() - started
            python_bytes = _python_bytes(lambda: attach(ds_engine))
        shards = optimizer.shards
        for shard in shards:
            shard.tensor.grad = torch.zeros_like(shard.tensor)
        # As the wrapper's step() for each group or sub-group, without its collectives for gradients.
        calls = [lambda i=i: ds_engine.optimizer._optimizer_step(i) for i in range(len(shards))]  # type: ignore[misc]
    collectives = [_collectives(call) for call in calls]
    moments = sum(local(t).nbytes for state in optimizer.state.values() for t in state.values() if t.dim())
    return {
        "shards": len(shards),
        "slices": sum(len(shard.slices) for shard in shards),
        "weights": sum(local(shard.tensor).nbytes for shard in shards),
        "moments": moments,
        "calls": len(calls),
        "collectives": sum(map(len, collectives)),
        "most": max(map(len, collectives)),
        "bytes": sum(map(sum, collectives)),
        "attach": attached,
        "tables": python_bytes + _tensor_bytes(optimizer._bucketing.tables),
        "cut": fingerprint(shards),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def initialize(model: nn.Module, optimizer: ShardedOptimizer, engine: str, world: int) -> Any:
    zero = dict(ENGINES[engine])
    if engine == "ZeRO-3 in sub-groups":  # about eight; their size is of a rank's part, so that the default makes one
        zero["sub_group_size"] = sum(p.numel() for p in model.parameters()) // (8 * world)
    config = {
        "train_batch_size": world,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def shard_fully(model: Any, world: int) -> None:
    mesh = init_device_mesh("cpu", (world,))
    for layer in model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _collectives(call: Callable[[], Any]) -> list[int]:
    """Records the bytes of each all-reduce in a call. Fails on any other collective, as none is expected."""
    found: list[int] = []
    with mock.patch.object(dist, "all_reduce", lambda tensor, **_: found.append(tensor.nbytes)):
        call()
    return found


def _python_bytes(action: Callable[[], Any]) -> int:
    tracemalloc.start()
    result = action()  # the memory of its result counts
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del result
    return size


def fingerprint(shards: Sequence[ShardLayout]) -> str:
    """A hash of the layout, to compare with that of another rank."""
    layout = [(local(s.tensor).numel(), s.slices, s.parameters, s.is_counted) for s in shards]
    return hashlib.sha256(repr(layout).encode()).hexdigest()[:12]


def _tensor_bytes(found: Any) -> int:
    if isinstance(found, Tensor):
        return found.nbytes
    if isinstance(found, dict):
        return sum(map(_tensor_bytes, found.values()))
    if isinstance(found, (list, tuple)):
        return sum(map(_tensor_bytes, found))
    return sum(_tensor_bytes(getattr(found, f.name)) for f in fields(found)) if is_dataclass(found) else 0
