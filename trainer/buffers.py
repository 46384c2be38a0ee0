"""BatchNorm's running statistics: each rank's own, over the samples that it has seen. ZeRO does not synchronize them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


def persistent(model: nn.Module) -> dict[str, Tensor]:
    """The buffers in the model's state dict, by name: those that a checkpoint holds."""
    state = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in state}


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """The persistent buffers of floating point, which can be averaged over ranks."""
    return {name: buffer for name, buffer in persistent(model).items() if buffer.is_floating_point()}


@contextmanager
def preserve_buffers(model: nn.Module) -> Iterator[None]:
    """Context after which the persistent buffers have the values from before it."""
    saved = {name: buffer.detach().clone() for name, buffer in persistent(model).items()}
    try:
        yield
    finally:
        for name, buffer in persistent(model).items():
            buffer.copy_(saved[name])


@contextmanager
def average_buffers(model: nn.Module) -> Iterator[None]:
    """Context in which every rank has the mean over ranks of the running statistics. Collective.

    Afterwards each rank has its own again, so that a run that stops to evaluate or save stays bit-identical to one that
    does not.
    """
    with preserve_buffers(model):
        own_statistics = running_statistics(model)
        if own_statistics and dist.get_world_size() > 1:
            flat = torch.cat([buffer.double().reshape(-1) for buffer in own_statistics.values()])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            means = flat.split([buffer.numel() for buffer in own_statistics.values()])
            for buffer, mean in zip(own_statistics.values(), means, strict=True):
                buffer.copy_(mean.view_as(buffer))
        yield
