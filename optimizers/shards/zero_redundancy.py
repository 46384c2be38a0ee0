"""torch's ZeroRedundancyOptimizer: each rank updates some of the parameters, whole, and broadcasts them."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bellwether.optimizers.sharded import Attachment, ShardedOptimizer
from bellwether.optimizers.shards.layout import ParameterInfo, ShardLayout
from bellwether.optimizers.shards.verification import verify


def is_engine(optimizer: object) -> bool:
    """Whether this is a `ZeroRedundancyOptimizer`. By name: its module is slow to import, and not in every build."""
    return type(optimizer).__name__ == "ZeroRedundancyOptimizer"


def attachment(engine: Any) -> Attachment:
    """Which parameters a `ZeroRedundancyOptimizer` has given to this rank.

    No parameter is split, so trust ratios need no collective. A sum over all parameters goes over all ranks.
    """
    inner = engine.optim
    shard_by_tensor = {shard.tensor: shard for shard in inner.shards}
    shards = [
        shard_by_tensor.get(parameter) or ShardLayout.whole(parameter, f"{index}.{i}")
        for index, group in enumerate(inner.param_groups)
        for i, parameter in enumerate(group["params"])
    ]
    # By their place in the engine, as each rank numbers its own.
    every = [p for group in engine.param_groups for p in group["params"]]
    infos = {p: ParameterInfo(f"parameter {i}", tuple(p.shape)) for i, p in enumerate(every)}
    placed = [replace(shard, parameters=(infos[shard.tensor],)) for shard in shards]
    name = f"ZeroRedundancyOptimizer of torch {torch.__version__}"
    verify(placed, engine=name, expected=list(infos.values()), spread_over=engine.process_group)
    return Attachment(shards, spread_over=engine.process_group, publish=engine._sync_params)


@functools.cache
def watch() -> None:
    """Mark the optimizer inside a `ZeroRedundancyOptimizer` as partial when that steps.

    It gets some of the parameters and no information about the others, so it cannot find out alone.
    """
    register_optimizer_step_pre_hook(_mark)


def _mark(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if is_engine(optimizer) and isinstance(optimizer.optim, ShardedOptimizer):  # type: ignore[attr-defined]
        optimizer.optim.mark_partial()  # type: ignore[attr-defined]
