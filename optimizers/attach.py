"""Tell an optimizer what an engine has made of its parameters."""

from __future__ import annotations

from typing import Any

from optimizers.sharded import ShardedOptimizer
from optimizers.shards import deepspeed as zero


def attach(engine: Any) -> ShardedOptimizer:
    """Learn which piece of which parameter lies where, so that the optimizer is exact under sharding.

    Call it once, right after ``deepspeed.initialize(model=model, optimizer=optimizer, ...)``, with the engine.

    Returns:
        the optimizer that the engine was given.

    Raises:
        TypeError: if this is not a DeepSpeed engine that was given one of the optimizers of this package.
        NotImplementedError: if DeepSpeed would bypass the optimizer (ZenFlow, SuperOffload, partial or NVMe offload).
    """
    optimizer = getattr(engine, "basic_optimizer", None)
    if not isinstance(optimizer, ShardedOptimizer):
        found = type(optimizer).__name__ if optimizer is not None else type(engine).__name__
        raise TypeError(
            f"attach: found {found}; give the engine that deepspeed.initialize(model=..., optimizer=Lamb(...)) returned"
        )
    optimizer.use(zero.attachment(engine))
    return optimizer
