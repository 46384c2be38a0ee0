"""A walk over the loss (Xing et al. 2018, A Walk with SGD, arXiv 1802.08770), measured on shards."""

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
    """What `Walk.read` has found; of all trained parameters together, but for the two by name.

    Attributes:
        distance: norm of what lies between the weights now and those at the start.
        cosine: of the angle between the last update and the one before; None where one of them is 0 or not known.
        update_norm, weight_norm: of the last update, None where it is not known, and of the weights after it.
        update_norms, weight_norms: the same of each parameter, by name.
    """

    distance: float
    cosine: float | None
    update_norm: float | None
    weight_norm: float
    update_norms: dict[str, float]
    weight_norms: dict[str, float]


class Trajectory:
    """Where the weights have gone: how far from the start, and whether each update goes on as the last one or turns back.

    In full-batch descent along a valley the cosine between successive updates tends to -1, a bouncing from wall to wall;
    noise keeps it higher and lets the weights go further. Made where the walk begins, after `attach`::

        walk = Walk(optimizer)
        for batch in batches:
            ...
            optimizer.step()
            print(walk.read())     # now and then; collective
            walk.keep()            # after each of the two steps before a read

    Args:
        optimizer: any of this package.

    Memory: each `keep`, of which the last two count, and the start are a copy of the weights, sharded as they are.
    """

    def __init__(self, optimizer: ShardedOptimizer) -> None:
        self.optimizer = optimizer
        self._start = self._copy()
        self._kept: list[list[Tensor]] = []

    def _copy(self) -> list[Tensor]:
        # In 32 bits at least: updates are small differences.
        return [
            weights.to(torch.promote_types(weights.dtype, torch.float32), copy=True)
            for weights in (local(shard.tensor.detach()).reshape(-1) for shard in self.optimizer.shards)
        ]

    def keep(self) -> None:
        """Remember the weights as they are now."""
        self._kept = [*self._kept[-1:], self._copy()]

    def forget(self) -> None:
        """Let go of what `keep` remembers."""
        self._kept = []

    @torch.no_grad()
    def read(self) -> Stride:
        """Collective: one all-reduce a process group for all sums."""
        shards, found = list(self.optimizer.shards), []
        for number, shard in enumerate(shards):
            now = local(shard.tensor.detach()).reshape(-1)
            sums = torch.zeros(5, len(shard.parameters), dtype=torch.float64, device=now.device)
            for offset, length, index in shard.segments():
                places = [self._start[number], *(kept[number] for kept in self._kept)]
                start, *kept = (place[offset : offset + length] for place in places)
                here = now[offset : offset + length].to(start.dtype)
                sums[0, index] += squared_norm(here)
                sums[1, index] += squared_norm(here - start)
                if kept:
                    update = here - kept[-1]
                    sums[2, index] += squared_norm(update)
                    if len(kept) > 1:
                        before = kept[1] - kept[0]
                        sums[3, index] += squared_norm(before)
                        sums[4, index] += dot(update, before)
            found.append((shard.process_group, sums if shard.counts else torch.zeros_like(sums)))
        totals = [sums.cpu() for sums in sum_by_process_group(found)]
        whole = sum((sums.sum(1) for sums in totals), torch.zeros(5, dtype=torch.float64))
        attachment = self.optimizer.attachment
        if attachment is not None and attachment.spread_over is not None:
            whole = sum_over_ranks([whole], attachment.spread_over)[0]
        names = [parameter.name for shard in shards for parameter in shard.parameters]
        by_name = torch.cat([*totals, torch.zeros(5, 0, dtype=torch.float64)], dim=1).sqrt().tolist()
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
        """Inside, call what it gives with a share: the model has the weights that lie so far from the last kept to the present.

        0 and 1 are these two to the bit, and afterwards it has the present ones again. Collective under an engine, calls and
        end.

        Raises:
            RuntimeError: if nothing was kept.
        """
        if not self._kept:
            raise RuntimeError("between() without keep(): call it after the step before")
        weights = [local(shard.tensor.detach()) for shard in self.optimizer.shards]
        present = [tensor.clone() for tensor in weights]
        attachment = self.optimizer.attachment
        publish = attachment.publish if attachment is not None else None

        @torch.no_grad()
        def go(share: float) -> None:
            for tensor, old, new in zip(weights, self._kept[-1], present, strict=True):
                tensor.copy_(new if share == 1 else torch.lerp(old.view_as(new), new.to(old.dtype), share))
            if publish is not None:
                publish()

        try:
            yield go
        finally:
            go(1)
