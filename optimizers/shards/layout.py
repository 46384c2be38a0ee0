"""Which part of which parameter lies where in the tensors that an engine hands to the optimizer.

All that is about whole parameters (norms, trust ratios, checkpoints, logging) is written once, on pieces,
and every engine is a function that lists them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class ParameterInfo:
    """A parameter as the model knows it, whole."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class ParameterSlice:
    """``length`` consecutive elements of a parameter that this rank owns."""

    index: int  # of the parameter in Shard.parameters
    offset: int  # where the piece begins in the flat tensor
    start: int  # where it begins in the flattened parameter
    length: int


@dataclass(frozen=True, eq=False)
class ShardLayout:
    """One tensor that the optimizer updates, and what is in it.

    Elements that no piece covers are padding: they may hold anything and are never read as a weight.
    """

    tensor: Tensor
    parameters: tuple[
        ParameterInfo, ...
    ]  # all that are split over `process_group`, in the same order on each of its ranks
    pieces: tuple[ParameterSlice, ...]  # what this rank owns of them; may be nothing
    process_group: dist.ProcessGroup | None  # None: every rank holds the parameters whole
    counts: bool = True  # whether this rank's part counts in sums over `process_group`; False for all but one replica

    @classmethod
    def whole(cls, tensor: Tensor, name: str) -> ShardLayout:
        """A parameter that is not split."""
        parameter = ParameterInfo(name, tuple(tensor.shape))
        return cls(tensor, (parameter,), (ParameterSlice(0, 0, 0, parameter.numel),), None)

    def views(self, tensor: Tensor) -> Iterator[tuple[ParameterSlice, Tensor]]:
        """The pieces of a tensor laid out as this shard's: the weights, a moment, an update. Each of shape [length].

        Views into a contiguous tensor, such as every split one; else copies, in the order of the contiguous one.
        """
        flat = local(tensor).reshape(-1)
        for piece in self.pieces:
            yield piece, flat.narrow(0, piece.offset, piece.length)

    def segments(self) -> list[tuple[int, int, int]]:
        """(offset, length, index of the parameter) of each run of elements: pieces that touch are one."""
        runs: list[tuple[int, int, int]] = []
        for piece in self.pieces:
            if runs and runs[-1][2] == piece.index and sum(runs[-1][:2]) == piece.offset:
                runs[-1] = (runs[-1][0], runs[-1][1] + piece.length, piece.index)
            else:
                runs.append((piece.offset, piece.length, piece.index))
        return runs


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies on this rank: its own part of a DTensor, any other as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def local_gradient(tensor: Tensor) -> Tensor:
    """A tensor's gradient, laid out over ranks as the tensor.

    Under tensor parallelism the gradient of a replicated DTensor is left as a sum of which each rank has a summand.
    """
    grad: Any = tensor.grad
    placements = getattr(tensor, "placements", None)
    if placements is not None and grad.placements != placements:
        grad = grad.redistribute(placements=placements)
    return local(grad)


def cut(parameters: Iterable[tuple[ParameterInfo, int]], begin: int, end: int) -> tuple[ParameterSlice, ...]:
    """The pieces inside [begin, end) of a long flat tensor that holds each parameter at its offset."""
    pieces = []
    for index, (parameter, offset) in enumerate(parameters):
        left, right = max(begin, offset), min(end, offset + parameter.numel)
        if left < right:
            pieces.append(ParameterSlice(index, left - begin, left - offset, right - left))
    return tuple(pieces)


def squared_norm(tensor: Tensor) -> Tensor:
    """Sum of squares, float64: sums over ranks must not depend on how a parameter is cut."""
    return dot(tensor, tensor)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products, float64, of two tensors of the same shape."""
    a, b = a.reshape(-1), b.reshape(-1)
    # In chunks, as torch has to copy to float64: on the CPU so small that the copies stay in cache.
    size = 1 << (17 if a.device.type == "cpu" else 24)
    sums = [torch.dot(x.double(), y.double()) for x, y in zip(a.split(size), b.split(size), strict=True)]
    return torch.stack(sums).sum() if len(sums) > 1 else sums[0]


def sqrt(squares: Tensor) -> Tensor:
    """Square roots of a few float64 numbers, correctly rounded on every machine.

    torch computes them with MKL on CPUs, which is off by one unit in the last place on some processors. Then a trust
    ratio of two passes, with norms from here, would not be the one of a fused step, whose norms are from C++.
    """
    if squares.device.type != "cpu":
        return squares.sqrt()
    roots = [math.sqrt(square) for square in squares.reshape(-1).tolist()]
    return torch.tensor(roots, dtype=torch.float64, device="cpu").view(squares.shape)


def sum_over_ranks(sums: list[Tensor], process_group: dist.ProcessGroup) -> list[Tensor]:
    """Sums of any shapes over all ranks of a group, in one all-reduce. Each rank gives the same shapes."""
    packed = torch.cat([s.reshape(-1) for s in sums])
    # NCCL cannot carry the tensors of an offloaded optimizer.
    on_device = packed.to(_device(process_group, packed.device))
    dist.all_reduce(on_device, group=process_group)
    return [
        total.view_as(s)
        for s, total in zip(sums, on_device.to(packed.device).split([s.numel() for s in sums]), strict=True)
    ]


def sum_by_process_group(found: list[tuple[dist.ProcessGroup | None, Tensor]]) -> list[Tensor]:
    """Each sum over the ranks of its process group, or as it is without one: one all-reduce a group, in their order."""
    sums = [s for _, s in found]
    for process_group in dict.fromkeys(group for group, _ in found if group is not None):
        mine = [i for i, (group, _) in enumerate(found) if group is process_group]
        for i, total in zip(mine, sum_over_ranks([sums[i] for i in mine], process_group), strict=True):
            sums[i] = total
    return sums


def _device(process_group: dist.ProcessGroup, wanted: torch.device) -> torch.device:
    if wanted.type == "cpu" and dist.get_backend(process_group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return wanted
