"""Which slice of which parameter lies where in the tensors that an engine hands to the optimizer.

All that concerns whole parameters (norms, trust ratios, checkpoints, logging) is written once, on these slices. Each
engine is a function that lists them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_PLAIN = frozenset((Tensor, torch.nn.Parameter))


@dataclass(frozen=True)
class ParameterInfo:
    """A whole parameter of the model."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class ParameterSlice:
    """``length`` consecutive elements of a parameter that this rank owns."""

    index: int  # of the parameter in ShardLayout.parameters
    offset: int  # first element in the flat tensor
    start: int  # first element in the flattened parameter
    length: int


@dataclass(frozen=True)
class Box(Sequence[ParameterSlice]):
    """A box in the index space of a parameter that has the flat tensor for itself: slices, each computed when asked for.

    A matrix of which a rank has some columns is one slice per row; a Python object for each would take memory and time.
    """

    shape: tuple[int, ...]  # of the parameter
    corner: tuple[int, ...]  # lowest index in each dimension
    size: tuple[int, ...]

    @cached_property
    def _inner(self) -> int:
        """The dimension after which all are whole, so that consecutive elements span them."""
        return max((d for d in range(len(self.shape)) if self.size[d] != self.shape[d]), default=0)

    @cached_property
    def length(self) -> int:
        """Elements of a slice."""
        return math.prod(self.size[self._inner :])

    def __len__(self) -> int:
        return math.prod(self.size[: self._inner]) if math.prod(self.size) else 0

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return tuple(self[i] for i in range(*row.indices(len(self))))
        row = range(len(self))[row]
        offset, start = row * self.length, 0
        for d in range(len(self.shape) - 1, -1, -1):
            index = self.corner[d]
            if d < self._inner:
                row, i = divmod(row, self.size[d])
                index += i
            start += index * math.prod(self.shape[d + 1 :])
        return ParameterSlice(0, offset, start, self.length)


@dataclass(frozen=True, eq=False)
class ShardLayout:
    """A tensor that the optimizer updates, and which slices of which parameters it holds.

    Elements outside of all slices are padding: they may have any value and are never read as weights.
    """

    tensor: Tensor
    # All parameters that are split over `process_group`, in the same order on each of its ranks.
    parameters: tuple[ParameterInfo, ...]
    slices: Sequence[ParameterSlice]  # what this rank owns of them; may be empty
    process_group: dist.ProcessGroup | None  # None: every rank holds the parameters whole
    is_counted: bool = True  # whether sums over `process_group` include this rank; False for all but one replica

    @classmethod
    def whole(cls, tensor: Tensor, name: str) -> ShardLayout:
        """A parameter that is not split."""
        parameter = ParameterInfo(name, tuple(tensor.shape))
        return cls(tensor, (parameter,), (ParameterSlice(0, 0, 0, parameter.numel),), None)

    def views(self, tensor: Tensor) -> Iterator[tuple[ParameterSlice, Tensor]]:
        """The slices of a tensor with this layout: the weights, a moment, an update. Each of shape [length].

        Views if the tensor is contiguous, as every split one is; else copies, in the order of a contiguous one.
        """
        flat = local(tensor).reshape(-1)
        for part in self.slices:
            yield part, flat.narrow(0, part.offset, part.length)

    def segments(self) -> list[tuple[int, int, int]]:
        """(offset, length, index of the parameter) of each run of elements. Adjacent slices are one run."""
        if isinstance(self.slices, Box):
            return [(0, len(self.slices) * self.slices.length, 0)] if self.slices else []
        runs: list[tuple[int, int, int]] = []
        for part in self.slices:
            if runs and runs[-1][2] == part.index and sum(runs[-1][:2]) == part.offset:
                runs[-1] = (runs[-1][0], runs[-1][1] + part.length, part.index)
            else:
                runs.append((part.offset, part.length, part.index))
        return runs


def is_dtensor(tensor: Tensor) -> bool:
    if type(tensor) in _PLAIN:
        return False
    # Not imported here, which takes a second: who has a DTensor has imported it.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor; any other tensor as it is."""
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def all_local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """This rank's part of each tensor. Fast where none is a DTensor."""
    return list(tensors) if _PLAIN.issuperset(map(type, tensors)) else list(map(local, tensors))


def local_gradient(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor's gradient, with the placements of the tensor.

    Under tensor parallelism the gradient of a replicated DTensor may be partial: each rank has one summand.
    """
    grad: Any = tensor.grad
    if is_dtensor(tensor) and grad.placements != tensor.placements:  # type: ignore[attr-defined]
        grad = grad.redistribute(placements=tensor.placements)  # type: ignore[attr-defined]
    return local(grad)


def local_gradients(tensors: Sequence[Tensor]) -> list[Tensor]:
    """`local_gradient` of each tensor. Fast where none is a DTensor."""
    if _PLAIN.issuperset(map(type, tensors)):
        return [tensor.grad for tensor in tensors]  # type: ignore[misc]
    return list(map(local_gradient, tensors))


def cut(parameters: Iterable[tuple[ParameterInfo, int]], begin: int, end: int) -> tuple[ParameterSlice, ...]:
    """The slices inside [begin, end) of a flat tensor that holds each parameter at the given offset."""
    slices = []
    for index, (parameter, offset) in enumerate(parameters):
        left, right = max(begin, offset), min(end, offset + parameter.numel)
        if left < right:
            slices.append(ParameterSlice(index, left - begin, left - offset, right - left))
    return tuple(slices)


def squared_norm(tensor: Tensor) -> Tensor:
    """Sum of squares in float64, so that sums over ranks do not depend on how a parameter is sharded."""
    return dot(tensor, tensor)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products in float64 of two tensors of the same shape."""
    a, b = a.reshape(-1), b.reshape(-1)
    # In chunks, because torch copies to float64: on the CPU small enough for the copies to stay in cache.
    size = 1 << (17 if a.device.type == "cpu" else 24)
    sums = [torch.dot(x.double(), y.double()) for x, y in zip(a.split(size), b.split(size), strict=True)]
    return torch.stack(sums).sum() if len(sums) > 1 else sums[0]


def sqrt(squares: Tensor) -> Tensor:
    """Square roots of a few float64 numbers, correctly rounded on every machine.

    On CPUs torch uses MKL, which is off by one unit in the last place on some processors. The trust ratios of a sharded
    step would then differ from those of a fused step, which C++ computes.
    """
    if squares.device.type != "cpu":
        return squares.sqrt()
    roots = [math.sqrt(square) for square in squares.reshape(-1).tolist()]
    return torch.tensor(roots, dtype=torch.float64, device="cpu").view(squares.shape)


def sum_over_ranks(sums: list[Tensor], process_group: dist.ProcessGroup) -> list[Tensor]:
    """Sum tensors of any shapes over all ranks of a group, in one all-reduce. Each rank passes the same shapes."""
    packed = torch.cat([s.reshape(-1) for s in sums])
    # NCCL cannot reduce the CPU tensors of an offloaded optimizer.
    on_device = packed.to(communication_device(process_group, packed.device))
    dist.all_reduce(on_device, group=process_group)
    return [
        total.view_as(s)
        for s, total in zip(sums, on_device.to(packed.device).split([s.numel() for s in sums]), strict=True)
    ]


def sum_by_process_group(local_sums: list[tuple[dist.ProcessGroup | None, Tensor]]) -> list[Tensor]:
    """Sum each tensor over the ranks of its process group, if it has one. One all-reduce for each group, in order."""
    sums = [s for _, s in local_sums]
    for process_group in dict.fromkeys(group for group, _ in local_sums if group is not None):
        mine = [i for i, (group, _) in enumerate(local_sums) if group is process_group]
        for i, total in zip(mine, sum_over_ranks([sums[i] for i in mine], process_group), strict=True):
            sums[i] = total
    return sums


def communication_device(process_group: dist.ProcessGroup, wanted: torch.device) -> torch.device:
    """The device of a tensor that a process group can send, where ``wanted`` is the device of the values."""
    if wanted.type == "cpu" and dist.get_backend(process_group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return wanted
