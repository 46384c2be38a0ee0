"""Tell an optimizer what an engine has made of its parameters."""

from __future__ import annotations

from typing import Any

from bellwether.optimizers.sharded import ShardedOptimizer
from bellwether.optimizers.shards import deepspeed, zero_redundancy


def attach(engine: Any) -> ShardedOptimizer:
    """Learn which piece of which parameter lies where, so that the optimizer is exact under sharding.

    Call it once, right after the engine was made::

        engine, *_ = deepspeed.initialize(model=model, optimizer=Lamb(groups(model)), config=config)
        attach(engine)                                      # also what accelerate's prepare() returns for the model

        wanted = [{**g, "params": [p for _, p in g["params"]]} for g in groups(model)]  # it takes no names
        optimizer = ZeroRedundancyOptimizer(wanted, optimizer_class=Lamb)
        attach(optimizer)

    Plain torch, DDP and FSDP2 need none: their parameters say all there is to know.

    Returns:
        the optimizer of this package inside the engine.

    Raises:
        TypeError: if this is no such engine, or it holds another optimizer.
        NotImplementedError: if DeepSpeed would bypass the optimizer (ZenFlow, SuperOffload, partial or NVMe offload).
    """
    redundancy = type(engine).__name__ == "ZeroRedundancyOptimizer"
    optimizer = getattr(engine, "optim" if redundancy else "basic_optimizer", None)
    if not isinstance(optimizer, ShardedOptimizer):
        found = type(optimizer).__name__ if optimizer is not None else type(engine).__name__
        raise TypeError(
            f"attach: found {found}; give the engine that deepspeed.initialize(model=..., optimizer=Lamb(...)) returned, "
            "or ZeroRedundancyOptimizer(..., optimizer_class=Lamb)"
        )
    optimizer.use(zero_redundancy.attachment(engine) if redundancy else deepspeed.attachment(engine))
    return optimizer
