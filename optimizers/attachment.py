"""`attach`: pass an optimizer the layout that an engine has given its parameters."""

from __future__ import annotations

from typing import Any

from bellwether.optimizers.sharded import ShardedOptimizer
from bellwether.optimizers.shards import deepspeed, zero_redundancy


def attach(engine: Any) -> ShardedOptimizer:
    """Find out which slice of which parameter lies where, so that the optimizer is exact under sharding.

    Call it once, right after the engine is created::

        engine, *_ = deepspeed.initialize(model=model, optimizer=Lamb(groups(model)), config=config)
        attach(engine)                                      # or what accelerate's prepare() returns for the model

        optimizer = ZeroRedundancyOptimizer(groups(model, names=False), optimizer_class=Lamb)
        attach(optimizer)

    Plain torch, DDP and FSDP2 need no attach: their parameters have all the information.

    Returns:
        the optimizer of this package inside the engine.

    Raises:
        TypeError: if this is not such an engine, or it has another optimizer.
        NotImplementedError: if DeepSpeed would bypass the optimizer (ZenFlow, SuperOffload, partial or NVMe offload).
    """
    is_zero_redundancy = zero_redundancy.is_engine(engine)
    optimizer = getattr(engine, "optim" if is_zero_redundancy else "basic_optimizer", None)
    if not isinstance(optimizer, ShardedOptimizer):
        found = type(optimizer).__name__ if optimizer is not None else type(engine).__name__
        raise TypeError(
            f"attach: found {found}; pass the engine that deepspeed.initialize(model=..., optimizer=Lamb(...)) returned, "
            "or ZeroRedundancyOptimizer(..., optimizer_class=Lamb)"
        )
    optimizer.use(zero_redundancy.attachment(engine) if is_zero_redundancy else deepspeed.attachment(engine))
    return optimizer
