"""BatchNorm whose statistics stay in float32 when the model is cast to bfloat16 or float16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, with running statistics and arithmetic in float32 whatever the dtype of weights and inputs.

    An engine casts the whole module. A running mean that moves by a tenth of a small difference would then stand
    still: in bfloat16 a change below 1/256 of the value is lost.
    """

    @classmethod
    def replace(cls, model: nn.Module) -> None:
        """Make all of a model's `nn.BatchNorm2d` this class, in place; names, weights and hooks stay."""
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
                self._buffers[name] = buffer.to(cast.device)  # moved, but not rounded
        return self

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] of any floating dtype; the result has the same."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # a plain mean over batches, as torch has it
            momentum = 1.0 / float(self.num_batches_tracked or 1)
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight.float(), self.bias.float(),
            self.training, momentum, self.eps,
        )  # fmt: skip


def norms(model: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Inside, the running statistics of a model's BatchNorms do not move."""
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
