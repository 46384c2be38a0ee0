"""Measures the trajectory of the weights (Xing et al. 2018, A Walk with SGD, arXiv 1802.08770), on shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from bellwether.optimizers.sharded import ShardedOptimizer
from bellwether.optimizers.shards.layout import dot, local, squared_norm, sum_by_process_group, sum_over_ranks


@dataclass(frozen=True)
class Stride:
    """The result of `Trajectory.read`, over all trained parameters together or by name.

    Attributes:
        distance: norm of the difference between the weights now and at the start.
        cosine: of the angle between the last two updates; None if one of them is 0 or unknown.
        update_norm, weight_norm: norm of the last update (None if unknown) and of the weights after it.
        update_norms, weight_norms: the same for each parameter, by name.
    """

    distance: float
    cosine: float | None
    update_norm: float | None
    weight_norm: float
    update_norms: dict[str, float]
    weight_norms: dict[str, float]


class Trajectory:
    """Measures how far the weights are from the start, and the angle between successive updates.

    In full-batch descent along a valley the cosine between successive updates tends to -1, as the weights bounce between
    its walls; gradient noise keeps it higher, and the weights go further. Create it at the start, after `attach`::

        trajectory = Trajectory(optimizer)
        for batch in batches:
            ...
            optimizer.step()
            print(trajectory.read())     # now and then; collective
            trajectory.keep()            # after each of the two steps before a read

    Args:
        optimizer: any of this package.

    Memory: the start and each of the last two `keep` are a copy of the weights, sharded as they are.
    """

    def __init__(self, optimizer: ShardedOptimizer) -> None:
        self.optimizer = optimizer
        self._start = self._copy()
        self._kept: list[list[Tensor]] = []

    def _copy(self) -> list[Tensor]:
        # In at least 32 bits: updates are small differences.
        return [
            weights.to(torch.promote_types(weights.dtype, torch.float32), copy=True)
            for weights in (local(shard.tensor.detach()).reshape(-1) for shard in self.optimizer.shards)
        ]

    def keep(self) -> None:
        """Keep a copy of the current weights."""
        self._kept = [*self._kept[-1:], self._copy()]

    def forget(self) -> None:
        """Free the copies of `keep`."""
        self._kept = []

    @torch.no_grad()
    def read(self) -> Stride:
        """Measure. Collective: one all-reduce for each process group."""
        shards, local_sums = list(self.optimizer.shards), []
        for number, shard in enumerate(shards):
            now = local(shard.tensor.detach()).reshape(-1)
            sums = torch.zeros(5, len(shard.parameters), dtype=torch.float64, device=now.device)
            for offset, length, index in shard.segments():
                copies = [self._start[number], *(kept[number] for kept in self._kept)]
                start, *kept = (copy[offset : offset + length] for copy in copies)
                current = now[offset : offset + length].to(start.dtype)
                sums[0, index] += squared_norm(current)
                sums[1, index] += squared_norm(current - start)
                if kept:
                    update = current - kept[-1]
                    sums[2, index] += squared_norm(update)
                    if len(kept) > 1:
                        before = kept[1] - kept[0]
                        sums[3, index] += squared_norm(before)
                        sums[4, index] += dot(update, before)
            local_sums.append((shard.process_group, sums if shard.is_counted else torch.zeros_like(sums)))
        totals = [sums.cpu() for sums in sum_by_process_group(local_sums)]
        whole = sum((sums.sum(1) for sums in totals), torch.zeros(5, dtype=torch.float64, device="cpu"))
        attachment = self.optimizer.attachment
        if attachment is not None and attachment.spread_over is not None:
            whole = sum_over_ranks([whole], attachment.spread_over)[0]
        names = [parameter.name for shard in shards for parameter in shard.parameters]
        by_name = torch.cat([*totals, torch.zeros(5, 0, dtype=torch.float64, device="cpu")], dim=1).sqrt().tolist()
        weight, distance, update, before, product = whole.tolist()
        return Stride(
            distance=distance**0.5,
            cosine=product / (update * before) ** 0.5 if update and before else None,
            update_norm=update**0.5 if self._kept else None,
            weight_norm=weight**0.5,
            update_norms=dict(zip(names, by_name[2], strict=True)) if self._kept else {},
            weight_norms=dict(zip(names, by_name[0], strict=True)),
        )

    @contextmanager
    def between(self) -> Iterator[Callable[[float], None]]:
        """Give the model weights interpolated between the last kept (0) and the current ones (1).

        Yields a function of the position in [0, 1]. Positions 0 and 1 give these two to the bit, and on exit the model has
        its current weights again. Under an engine the calls and the exit are collective.

        Raises:
            RuntimeError: if nothing was kept.
        """
        if not self._kept:
            raise RuntimeError("between() without keep(): call keep() after the previous step")
        weights = [local(shard.tensor.detach()) for shard in self.optimizer.shards]
        current = [tensor.clone() for tensor in weights]
        attachment = self.optimizer.attachment
        publish = attachment.publish if attachment is not None else None

        @torch.no_grad()
        def interpolate(position: float) -> None:
            for tensor, old, new in zip(weights, self._kept[-1], current, strict=True):
                tensor.copy_(new if position == 1 else torch.lerp(old.view_as(new), new.to(old.dtype), position))
            if publish is not None:
                publish()

        try:
            yield interpolate
        finally:
            interpolate(1)
