"""What every optimizer of this package, wrapped or not, offers to engines, checkpoints and logs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch.optim import Optimizer

from optimizers.shards.pieces import Shard


@dataclass(frozen=True)
class Attachment:
    """What an engine has made of the parameters, as `optimizers.attach` finds it."""

    shards: Sequence[Shard]  # that this rank updates, in the engine's order
    gradient_norm: Callable[[], float] | None = None  # of all gradients as step() sees them, where the engine knows it
    spread_over: dist.ProcessGroup | None = None  # ranks that update different whole parameters
    publish: Callable[[], None] | None = None  # copies the shards' weights into the model; collective


class ShardedOptimizer(Optimizer):
    """A torch optimizer that knows which piece of which parameter lies where."""

    @property
    def shards(self) -> Sequence[Shard]:
        """The tensors that this optimizer updates on this rank, in the engine's order."""
        raise NotImplementedError

    def use(self, attachment: Attachment) -> None:
        """Update these shards from now on. `optimizers.attach` calls it with what it found in an engine."""
        raise NotImplementedError

    def use_shards(self, shards: Iterable[Shard]) -> None:
        """`use` for an engine of your own: the tensors that it puts in the param groups, and what is in them."""
        self.use(Attachment(list(shards)))

    def trust_ratios(self) -> dict[str, float]:
        """The last step's trust ratio of each adapted parameter, by name. Waits for the device; the same on all ranks."""
        raise NotImplementedError
