"""Collectives of CUDA tensors over gloo, each through copies on the host: gloo has only some of them for CUDA.

For two processes on one GPU, which NCCL refuses. Slow, and exact: what is reduced is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

NAMES = (
    "all_reduce", "broadcast", "reduce", "all_gather", "gather", "scatter", "reduce_scatter", "all_to_all_single",
    "all_gather_into_tensor", "reduce_scatter_tensor", "_all_gather_base", "_reduce_scatter_base",
)  # fmt: skip


class Finished:
    """What an asynchronous collective returns, when it has been done at once."""

    def wait(self, *args: Any) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


def install(everything: bool = False) -> None:
    """Replace the collectives of torch.distributed. To be called before DeepSpeed is imported.

    Args:
        everything: copy also what lies on the CPU, to see that it works.
    """
    for name in NAMES:
        original = getattr(dist, name, None)
        if original is not None:
            wrapped = through_host(original, everything)
            setattr(dist, name, wrapped)
            setattr(dist.distributed_c10d, name, wrapped)


def through_host(collective: Callable[..., Any], everything: bool = False) -> Callable[..., Any]:
    """A collective that is called with copies of its tensors on the CPU, and copies them back."""

    def call(*args: Any, async_op: bool = False, **options: Any) -> Any:
        pairs: list[tuple[Tensor, Tensor]] = []

        def on_host(value: Any) -> Any:
            if isinstance(value, Tensor) and (everything or value.device.type != "cpu"):
                pairs.append((value, value.detach().to("cpu", copy=True).contiguous()))
                return pairs[-1][1]
            if isinstance(value, list | tuple):
                return [on_host(inner) for inner in value]
            return value

        result = collective(*map(on_host, args), **{name: on_host(value) for name, value in options.items()})
        with torch.no_grad():
            for tensor, copy in reversed(
                pairs
            ):  # results come first in torch's signatures, and may be views of an argument
                tensor.copy_(copy)
        return Finished() if async_op else result

    return call
