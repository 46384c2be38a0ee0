"""Which part of which parameter lies where in the tensors that an engine hands to the optimizer.

All that is about whole parameters (norms, trust ratios, checkpoints, logging) is written once, on pieces,
and every engine is a function that lists them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

_CHUNK = 1 << 22  # elements


@dataclass(frozen=True)
class Parameter:
    """A parameter as the model knows it, whole."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Piece:
    """``length`` consecutive elements of a parameter that this rank owns."""

    index: int  # of the parameter in Shard.parameters
    offset: int  # where the piece begins in the flat tensor
    start: int  # where it begins in the flattened parameter
    length: int


@dataclass(frozen=True, eq=False)
class Shard:
    """One tensor that the optimizer updates, and what is in it.

    Elements that no piece covers are padding: they may hold anything and are never read as a weight.
    """

    tensor: Tensor
    parameters: tuple[Parameter, ...]  # all that are split over `process_group`, in the same order on each of its ranks
    pieces: tuple[Piece, ...]  # what this rank owns of them; may be nothing
    process_group: dist.ProcessGroup | None  # None: every rank holds the parameters whole

    @classmethod
    def whole(cls, tensor: Tensor, name: str) -> Shard:
        """A parameter that is not split."""
        parameter = Parameter(name, tuple(tensor.shape))
        return cls(tensor, (parameter,), (Piece(0, 0, 0, parameter.numel),), None)

    def views(self, tensor: Tensor) -> Iterator[tuple[Piece, Tensor]]:
        """The pieces of a tensor laid out as this shard's: the weights, a moment, an update. Each of shape [length].

        Views into a contiguous tensor, such as every split one; else copies, in the order of the contiguous one.
        """
        flat = tensor.reshape(-1)
        for piece in self.pieces:
            yield piece, flat.narrow(0, piece.offset, piece.length)


def cut(parameters: Iterable[tuple[Parameter, int]], begin: int, end: int) -> tuple[Piece, ...]:
    """The pieces inside [begin, end) of a long flat tensor that holds each parameter at its offset."""
    pieces = []
    for index, (parameter, offset) in enumerate(parameters):
        left, right = max(begin, offset), min(end, offset + parameter.numel)
        if left < right:
            pieces.append(Piece(index, left - begin, left - offset, right - left))
    return tuple(pieces)


def squared_norms(shard: Shard, *tensors: Tensor) -> Tensor:
    """Sum of squares of each parameter in each tensor, over this rank's pieces alone.

    Returns float64 [len(tensors), len(shard.parameters)], zero where this rank owns nothing. float64, because the
    sum over ranks must not depend on how a parameter is cut.
    """
    sums = torch.zeros(len(tensors), len(shard.parameters), dtype=torch.float64, device=shard.tensor.device)
    for row, tensor in enumerate(tensors):
        found: dict[int, Tensor] = {}
        for piece, view in shard.views(tensor):
            # In chunks: torch makes a float64 copy of what it is to sum in float64.
            norms = torch.stack([torch.linalg.vector_norm(c, dtype=torch.float64) for c in view.split(_CHUNK)])
            square = norms.square().sum()
            # Several fragments of one parameter add up; in this order, so that the bits are the same every time.
            found[piece.index] = found[piece.index] + square if piece.index in found else square
        if found:
            sums[row, list(found)] = torch.stack(list(found.values()))
    return sums


def sum_over_ranks(sums: list[Tensor], process_group: dist.ProcessGroup) -> list[Tensor]:
    """The sums of `squared_norms` over all ranks of a group, in one all-reduce."""
    packed = torch.cat([s.reshape(-1) for s in sums])
    on_device = packed.to(
        _device(process_group, packed.device)
    )  # NCCL cannot carry the tensors of an offloaded optimizer
    dist.all_reduce(on_device, group=process_group)
    return [
        total.view_as(s)
        for s, total in zip(sums, on_device.to(packed.device).split([s.numel() for s in sums]), strict=True)
    ]


def _device(process_group: dist.ProcessGroup, wanted: torch.device) -> torch.device:
    if wanted.type == "cpu" and dist.get_backend(process_group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return wanted
