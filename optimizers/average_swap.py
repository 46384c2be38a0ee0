"""What an optimizer that keeps an average of the weights has in common with others: swapping it into the model and out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from bellwether.optimizers.sharded import ShardedOptimizer, Work
from bellwether.optimizers.shards.layout import local


class AverageSwap(ShardedOptimizer):
    """An optimizer with an average of the weights, which `averaged` gives to the model for evaluation."""

    # Whether the average is the result of training, and the weights are only where gradients are taken.
    replaces_weights: ClassVar[bool] = False
    _kept: list[tuple[Tensor, Tensor]] | None = None  # the weights, while the averages are swapped in

    def average_of(self, tensor: Tensor) -> Tensor | None:
        """The average of what this rank holds of a tensor; None before it has begun."""
        raise NotImplementedError

    @property
    def has_average(self) -> bool:
        """Whether any weights have been averaged; the same on every rank that updates anything."""
        return any(self.average_of(shard.tensor) is not None for shard in self.shards)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the model the averages in place of its weights, if there are any.

        Collective under an engine. BatchNorm's statistics are still those of the weights: see `recompute_batch_norm`.
        """
        self._refuse_swapped("averaged()")
        if self.is_partial:
            raise RuntimeError("averaged() inside ZeroRedundancyOptimizer: call optimizers.attach(optimizer) first")
        self._kept = []
        with torch.no_grad():
            for shard in self.shards:
                average = self.average_of(shard.tensor)
                if average is not None:
                    weights = local(shard.tensor.detach())
                    self._kept.append((weights, weights.clone()))
                    weights.copy_(average)
        try:
            self._publish()
            yield
        finally:
            for weights, kept in self._kept:
                weights.copy_(kept)
            self._kept = None
            self._publish()

    def _publish(self) -> None:
        # Without an engine, the swapped tensors are the model's own.
        if self.attachment is not None and self.attachment.publish is not None:
            self.attachment.publish()

    def _refuse_swapped(self, what: str) -> None:
        if self._kept is not None:
            raise RuntimeError(f"{what} while the averages are swapped in: exit `with optimizer.averaged()` first")

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_swapped("a copy")
        state: dict[str, Any] = super().__getstate__()
        return state

    def state_dict(self) -> dict[str, Any]:
        self._refuse_swapped("state_dict()")
        return super().state_dict()

    def update(self, work: Work) -> None:
        self._refuse_swapped("step()")
        super().update(work)
