"""What every optimizer of this package, wrapped or not, offers to engines, checkpoints and logs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from bellwether.optimizers.shards.layout import ShardLayout

Group = dict[str, Any]
Work = list[tuple[Group, Tensor]]


@dataclass(frozen=True)
class Attachment:
    """What an engine has made of the parameters, as `bellwether.optimizers.attach` finds it."""

    shards: Sequence[ShardLayout]  # that this rank updates, in the engine's order
    gradient_norm: Callable[[], float] | None = None  # of all gradients as step() sees them, where the engine knows it
    spread_over: dist.ProcessGroup | None = None  # ranks that update different whole parameters
    publish: Callable[[], None] | None = None  # copies the shards' weights into the model; collective


class ShardedOptimizer(Optimizer):
    """A torch optimizer that knows which piece of which parameter lies where."""

    @property
    def name(self) -> str:
        """What it is, wrappers and all, as in ``Lookahead(Lamb)``."""
        return type(self).__name__

    @property
    def shards(self) -> Sequence[ShardLayout]:
        """The tensors that this optimizer updates on this rank, in the engine's order."""
        raise NotImplementedError

    def use(self, attachment: Attachment) -> None:
        """Update these shards from now on. `bellwether.optimizers.attach` calls it with what it found in an engine."""
        raise NotImplementedError

    @property
    def attachment(self) -> Attachment | None:
        """What `use` was given last, if anything."""
        raise NotImplementedError

    def use_shards(
        self,
        shards: Iterable[ShardLayout],
        *,
        spread_over: dist.ProcessGroup | None = None,
        publish: Callable[[], None] | None = None,
    ) -> None:
        """`use` for an engine of your own.

        Args:
            shards: the tensors that the engine puts in the param groups, and what is in them.
            spread_over: ranks that update different whole parameters, if any do.
            publish: copies the shards' weights into the model, if they are not the model's own. Collective.
        """
        self.use(Attachment(list(shards), spread_over=spread_over, publish=publish))

    def trust_ratios(self) -> dict[str, float]:
        """The trust ratio of each adapted parameter in the last step that it took part in, by name.

        Waits for the device. Of the parameters that this rank updates or has a piece of.
        """
        raise NotImplementedError

    def scalars(self) -> dict[str, float]:
        """What belongs to this optimizer's state apart from tensors: for checkpoints that keep state by parameter."""
        return {}

    def load_scalars(self, scalars: dict[str, float]) -> None:
        """Take over what `scalars` gave."""

    @property
    def sums_over_all(self) -> bool:
        """Whether an update depends on all parameters together, so that every rank has to be asked."""
        return False

    @property
    def is_part(self) -> bool:
        """Whether this optimizer was made inside ZeroRedundancyOptimizer, and not been told what the others have."""
        return False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every tensor that has a gradient.

        Collectives: one all-reduce if any split parameter needs a trust ratio, and one more to normalise the gradients
        where the engine does not know their norm.

        Raises:
            RuntimeError: if an engine has put its own tensors into the param groups and `bellwether.optimizers.attach` was not
                called: their trust ratios would be silently wrong. Also for sparse gradients.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self.is_part and self.sums_over_all:
            raise RuntimeError(
                f"{self.name} inside ZeroRedundancyOptimizer needs the sums of all ranks: call optimizers.attach(optimizer)"
            )
        if not self._is_rehearsal([p for _, p in work]):
            self._update(work)
        return loss

    def _update(self, work: Work) -> None:
        """Update these tensors, which all have gradients."""
        raise NotImplementedError

    def _is_rehearsal(self, tensors: list[Tensor]) -> bool:
        """Whether this step is an engine's dry run, to be left out. Refuses a real step on tensors that are not known."""
        raise NotImplementedError
