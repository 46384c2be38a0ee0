"""Averages of the weights over training: SWA (Izmailov et al. 2018, arXiv 1803.05407) and EMA."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from bellwether.optimizers.average_swap import AverageSwap
from bellwether.optimizers.sharded import ShardedOptimizer, Work
from bellwether.optimizers.shards.layout import local
from bellwether.optimizers.wrapper import Wrapper


class WeightAverage(AverageSwap, Wrapper):
    r"""Keeps an average of the weights, to be swapped in for evaluation::

        swa:  average = average + (w - average) / n          for the n-th sample of the weights
        ema:  average = decay average + (1 - decay) w

    Args:
        base: the optimizer, any of this package.
        kind: ``swa``, the mean, or ``ema``.
        start: the first update whose weights are averaged.
        every: updates between two samples of the weights.
        decay: of the EMA, in [0, 1).

    Raises:
        ValueError: for values out of range.

    State of each tensor, in addition to the inner optimizer's: ``average``, sharded as the weights are.

    >>> from bellwether.optimizers import SGD
    >>> weight = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = WeightAverage(SGD([weight], lr=1.0), kind="swa", start=2)
    >>> for _ in range(3):
    ...     weight.grad = torch.tensor([1.0])
    ...     optimizer.step()
    >>> weight.item()
    1.0
    >>> with optimizer.averaged():
    ...     weight.item()  # the mean of 2 and 1
    1.5
    >>> weight.item()
    1.0
    """

    def __init__(
        self,
        base: ShardedOptimizer,
        kind: Literal["swa", "ema"] = "swa",
        *,
        start: int = 1,
        every: int = 1,
        decay: float = 0.999,
    ) -> None:
        if kind not in ("swa", "ema"):
            raise ValueError(f"kind={kind!r}: must be 'swa' or 'ema'")
        for key, value in {"start": start, "every": every}.items():
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{key}={value!r}: must be an integer number of updates, at least 1")
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay!r}: must be in [0, 1)")
        super().__init__(base)
        self.kind, self.start, self.every, self.decay = kind, start, every, decay

    def update(self, work: Work) -> None:
        super().update(work)
        for _, tensor in work:
            state = self.state[tensor]
            if "average" not in state:
                state["average"] = tensor.detach().to(self.state_dtype(tensor, "average"), copy=True)
            samples, remainder = divmod(int(state["step"].item()) - self.start, self.every)
            if samples < 0 or remainder:
                continue
            average = local(state["average"])
            if samples:
                weight = 1 / (samples + 1) if self.kind == "swa" else 1 - self.decay
                average.lerp_(local(tensor.detach()).to(average.dtype), weight)
            else:
                average.copy_(local(tensor.detach()))

    options = ("kind", "start", "every", "decay")

    def own_state_names(self) -> set[str]:
        return {"average"}

    def state_dtype(self, tensor: Tensor, name: str) -> torch.dtype:
        # In 16 bits the changes of a slow average would round to 0.
        return (
            torch.promote_types(tensor.dtype, torch.float32) if name == "average" else super().state_dtype(tensor, name)
        )

    def scalars(self) -> dict[str, float]:
        return {**super().scalars(), "average_start": float(self.start)}

    def average_of(self, tensor: Tensor) -> Tensor | None:
        """The average, once it has begun: the state exists before."""
        state = self.state.get(tensor, {})
        return local(state["average"]) if "average" in state and int(state["step"].item()) >= self.start else None


def recompute_batch_norm(
    model: nn.Module, batches: Iterable[Any], process_group: dist.ProcessGroup | None = None
) -> None:
    """Recompute BatchNorm's running statistics for averaged weights: means over batches, the same on all ranks.

    Args:
        model: called once with each batch, in training mode, without gradients.
        batches: this rank's inputs; of a tuple or list the first item. The same number on each rank.
        process_group: the ranks to average over; all by default, if torch.distributed is initialized.
    """
    update_bn(batches, model)
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers or not (dist.is_available() and dist.is_initialized()):
        return
    buffers = [b for m in layers for b in (m.running_mean, m.running_var) if b is not None]
    packed = torch.cat([b.double() for b in buffers])
    dist.all_reduce(packed, group=process_group)
    packed /= dist.get_world_size(process_group)
    for buffer, mean in zip(buffers, packed.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean)
