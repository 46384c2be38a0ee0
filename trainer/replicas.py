"""Compares the weights that all ranks hold, bit by bit, and names a rank whose copy differs: silent corruption.

Under ZeRO 0, 1 and 2 these are all weights of the model; under ZeRO 3 the small parameters that DeepSpeed keeps whole. Master weights
and optimizer state are split, have no second copy and cannot be compared: of them only values that are not finite are found. A wrong
value in a split weight reaches all copies alike.
"""

from __future__ import annotations

import math
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bellwether.trainer import messages
from bellwether.trainer.config import Duration
from bellwether.trainer.distributed import World
from bellwether.trainer.engine import Engine
from bellwether.trainer.phases import Phase
from bellwether.trainer.signals import LostRank

_SHARE = 10  # checks after which all parameters were compared
_FEWEST = 8  # parameters of a check
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ReplicaCheck:
    """Checksums of the model's parameters, a tenth of them at a time, compared over all ranks."""

    def __init__(self, engine: Engine, phase: Phase, world: World, every: Duration | None, step: int) -> None:
        self._engine, self._phase, self._world = engine, phase, world
        self._checked, self._next = step, 0
        self._every = every if world.size > 1 else None

    def check_if_due(self, step: int) -> None:
        """`check` some parameters where the interval has passed. To be called where the device is synchronized anyway."""
        if self._every is not None and self._phase.passed(self._checked, step, self._every):
            self.check(step, everything=False)

    def check(self, step: int, everything: bool = True) -> None:
        """Compare parameters over all ranks; with ``everything``, all of them, and look for values that are not finite.

        Waits for the device. Collective.

        Raises:
            LostRank: on all ranks, if a rank's weights differ from the others'.
        """
        if self._every is None:
            return
        self._checked = step
        found = replicated(self._engine.task)
        if not everything and found:
            count = min(len(found), max(_FEWEST, math.ceil(len(found) / _SHARE)))
            found = [found[(self._next + index) % len(found)] for index in range(count)]
            self._next += count
        names, sums = [name for name, _ in found], [checksum(tensor) for _, tensor in found]
        if everything:  # of this rank's part; in all ranks' a model diverges, which the loss shows
            names.append(_NOT_FINITE)
            shards = self._engine.optimizer.shards
            weights = [view for shard in shards for _, view in shard.views(shard.tensor.detach())]
            sums.append(torch.tensor(int(has_not_finite(weights))))
        if not sums:
            return
        own = torch.stack([value.to(self._world.device) for value in sums])
        extremes = torch.cat([own, -own])
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        if bool((extremes[: len(own)] == -extremes[len(own) :]).all()):
            return
        rows = [torch.empty_like(own) for _ in range(self._world.size)]
        dist.all_gather(rows, own)
        hosts = messages.all_gather_values(socket.gethostname(), self._world.device)
        raise LostRank(describe(step, names, [row.tolist() for row in rows], hosts))


_NOT_FINITE = "not finite"


def replicated(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters that all ranks hold whole, by name, in the same order on all."""
    found: list[tuple[str, Any]] = list(model.named_parameters())
    is_split = [hasattr(p, "ds_id") and not (p.ds_persist and p.numel() == p.ds_numel) for _, p in found]
    return [(name, p.data) for (name, p), split in zip(found, is_split, strict=True) if not split]


def checksum(tensor: Tensor) -> Tensor:
    """The sum of a tensor's bits as integers, int64 and on its device: it changes with any single element."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() * flat.element_size() % 8 == 0:
        # Fourteen times as fast on a CPU as the sum of four bytes each. Which of the two depends on the size alone.
        aligned = flat if flat.storage_offset() * flat.element_size() % 8 == 0 else flat.clone()
        return aligned.view(torch.int64).sum()
    return flat.view(_INTEGERS[flat.element_size()]).sum(dtype=torch.int64)


def has_not_finite(weights: Sequence[Tensor]) -> bool:
    """Whether any weight is infinite or NaN. Waits for the device."""
    # Then their sum is not finite either, which is seen much faster. A sum may also overflow.
    sums = [part.sum(dtype=torch.float32) for part in weights]
    if not sums or bool(torch.isfinite(torch.stack([part.to(sums[0].device) for part in sums]).sum())):
        return False
    return any(bool((~torch.isfinite(part)).any()) for part in weights)


def describe(step: int, names: Sequence[str], values: Sequence[Sequence[int]], hosts: Sequence[str]) -> str:
    """Which ranks' copies differ from those of most ranks, and in which parameters; or that it cannot be told.

    Args:
        names: of the parameters; "not finite" for whether a rank's own part has a value that is not.
        values: of each rank, in the order of ``names``.
        hosts: of the ranks.
    """
    differing: dict[int, list[str]] = {}
    undecided = []
    for index, name in enumerate(names):
        column = [row[index] for row in values]
        usual, count = Counter(column).most_common(1)[0]
        if name == _NOT_FINITE:
            usual, count = 0, len(column)  # whoever has one is named
        if count == len(column) and len(set(column)) == 1:
            continue
        if 2 * count <= len(column):
            undecided.append(name)
            continue
        for rank, value in enumerate(column):
            if value != usual:
                differing.setdefault(rank, []).append(name)
    shown = [f"rank {rank} on {hosts[rank]} ({_list(their)})" for rank, their in sorted(differing.items())]
    text = f"after step {step:,} the ranks' weights differ, which they never do: "
    text += (
        f"{_list(shown)} against the others" if shown else f"{_list(undecided)}; it cannot be told which rank is wrong"
    )
    return f"{text}. Suspect memory or GPU; no checkpoint was saved, and the newest one is older than this check"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4:,} more" if len(names) > 4 else "")
