"""BatchNorm's running statistics: each rank has seen its own samples, and ZeRO does not bring them together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


def lasting(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to a checkpoint, by name."""
    kept = model.state_dict(keep_vars=True)
    return {n: b for n, b in model.named_buffers() if n in kept}


def running(model: nn.Module) -> dict[str, Tensor]:
    """Those of floating point, which ranks can agree on."""
    return {n: b for n, b in lasting(model).items() if b.is_floating_point()}


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Afterwards, the buffers are again what they were before."""
    own = {name: buffer.detach().clone() for name, buffer in lasting(model).items()}
    try:
        yield
    finally:
        for name, buffer in lasting(model).items():
            buffer.copy_(own[name])


@contextmanager
def average_buffers(model: nn.Module) -> Iterator[None]:
    """Inside, every rank has the mean over ranks of the running statistics; afterwards its own again. Collective.

    Its own are given back so that a run that stops to evaluate or save goes on, to the bit, as one that does not.
    """
    with kept(model):
        own = running(model)
        if own and dist.get_world_size() > 1:
            flat = torch.cat([b.double().reshape(-1) for b in own.values()])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            parts = flat.split([b.numel() for b in own.values()])
            for buffer, part in zip(own.values(), parts, strict=True):
                buffer.copy_(part.view_as(buffer))
        yield
