"""BatchNorm that keeps its running statistics in float32 when the model is cast to bfloat16 or float16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with running statistics and arithmetic in float32 for every dtype of weights and inputs.

    An engine casts the whole module. In bfloat16, changes below 1/256 of a value are lost, so a running mean with momentum
    0.1 would stop moving.
    """

    @classmethod
    def replace(cls, model: nn.Module) -> None:
        """Changes the class of every `nn.BatchNorm2d` in a model to this one, in place; names, weights and hooks are kept."""
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = cls

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BatchNorm2d:
        exact = {name: buffer for name, buffer in self.named_buffers(recurse=False) if buffer.is_floating_point()}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            cast = self._buffers[name]
            assert cast is not None
            if cast.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(cast.device)  # moved to the device, but not rounded
        return self

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] of any floating dtype; the result has the same."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # a cumulative mean over batches, as in torch
            momentum = 1.0 / float(self.num_batches_tracked or 1)
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight.float(), self.bias.float(),
            self.training, momentum, self.eps,
        )  # fmt: skip


def norms(model: nn.Module) -> Iterator[nn.BatchNorm2d]:
    """The BatchNorm layers of a model."""
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Inside this context the running statistics of a model's BatchNorm layers are not updated."""
    kept: list[tuple[nn.BatchNorm2d, float | None, Any]] = [
        (n, n.momentum, n.num_batches_tracked) for n in norms(model)
    ]
    for norm, _, _ in kept:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, tracked in kept:
            norm.momentum, norm.num_batches_tracked = momentum, tracked
