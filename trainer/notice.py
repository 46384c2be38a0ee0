"""Whether the run is to stop at the next step boundary: known to one rank first, agreed by all."""

from __future__ import annotations

import torch
import torch.distributed as dist

from trainer import signals
from trainer.distributed import World


class Notice:
    """One tiny all-reduce a step on a gloo group of its own, under way during the last micro-batch. Collective.

    It never waits for the GPU, and what a rank was told before its last micro-batch counts at the end of that step.
    """

    def __init__(self, world: World) -> None:
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: dist.Work | None = None

    def __enter__(self) -> Notice:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._group is not None and kind is None:
            dist.destroy_process_group(self._group)

    def ask(self) -> None:
        """Begin to ask all ranks. Collective."""
        self._flag.fill_(signals.received())
        if self._group is not None:
            self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, self._group, async_op=True)

    def answer(self) -> int:
        """The signal that any rank had received when it last asked, the same on all; 0 if none had."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return int(self._flag)
