"""The input of a kernel: a list of tensors, and where in them each parameter lies."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from bellwether.optimizers.shards.layout import ShardLayout, local

COLUMNS = 5  # weights, gradients, and at most three moments
# What the compiled kernels read and write. They compute in float32 and round to nearest when they write.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class SegmentTable:
    """Where the segments lie in the tensors of a list. A segment is a run of elements of one parameter."""

    tensor: Tensor  # int64 [segments], index of the tensor
    offset: Tensor  # int64 [segments], first element in the tensor
    length: Tensor  # int64 [segments], elements
    parameter: Tensor  # int64 [segments], index of the parameter among all of the list
    parameters: int  # how many
    counted: Tensor | None  # bool [parameters], whether sums over ranks include this rank's; None: all
    fragmented: bool  # whether a parameter has several segments
    _copies: dict[object, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, shards: Sequence[ShardLayout], by_parameter: bool) -> SegmentTable:
        """The segments of shards, one for each run of a parameter; without ``by_parameter``, one for each shard."""
        rows: list[tuple[int, int, int, int]] = []
        before = 0
        for index, shard in enumerate(shards):
            if by_parameter:
                for offset, length, parameter in shard.segments():
                    rows.append((index, offset, length, before + parameter))
            else:
                rows.append((index, 0, local(shard.tensor).numel(), before))
            before += len(shard.parameters)
        table = torch.tensor(rows, dtype=torch.int64, device="cpu").view(-1, 4).t().contiguous()
        counted = None
        if not all(shard.is_counted for shard in shards):
            counted = torch.tensor([shard.is_counted for shard in shards for _ in shard.parameters], device="cpu")
        fragmented = len({row[3] for row in rows}) < len(rows)
        return cls(table[0], table[1], table[2], table[3], before, counted, fragmented)

    def parameter_on(self, device: torch.device) -> Tensor:
        """`parameter` on a device."""
        return self._on("parameter", self.parameter, device)

    def _on(self, name: str, table: Tensor, device: torch.device) -> Tensor:
        """A table on a device. Copied once, because a copy from pageable memory synchronizes with a GPU."""
        if (name, device) not in self._copies:
            self._copies[name, device] = table.to(device)
        return self._copies[name, device]

    def sum_by_parameter(self, values: Tensor) -> Tensor:
        """Sums of each parameter [rows, parameters] from those of the segments [rows, segments]."""
        sums = values.new_zeros(values.shape[0], self.parameters)
        if not self.fragmented:
            sums[:, self.parameter_on(values.device)] = values
        else:  # in the order of the segments, so that the bits are the same every time
            for i, parameter in enumerate(self.parameter.tolist()):
                sums[:, parameter] += values[:, i]
        return sums if self.counted is None else sums * self._on("counted", self.counted, values.device)


@dataclass(frozen=True)
class BlockTable:
    """Segments cut into blocks of equal size, so that the work is balanced whatever the sizes of the parameters."""

    table: Tensor  # int64 [blocks, 4]: tensor, offset, length, segment; segments in ascending order
    first: Tensor  # int64 [segments + 1], the first block of each segment, and the number of all blocks

    @classmethod
    def of(cls, segments: SegmentTable, size: int, align: int = 1) -> BlockTable:
        """Blocks of at most ``size`` elements. All but a segment's first one begin at multiples of ``align``."""
        before = segments.offset % align  # elements by which the first block is shorter
        counts = torch.where(segments.length > 0, (segments.length + before + size - 1) // size, 0)
        first = _first(counts)
        segment = torch.repeat_interleave(counts)
        begin = (torch.arange(len(segment), device="cpu") - first[segment]) * size - before[segment]
        length = torch.minimum(begin + size, segments.length[segment])
        begin.clamp_(min=0)
        table = torch.stack(
            [segments.tensor[segment], segments.offset[segment] + begin, length - begin, segment], dim=1
        )
        return cls(table, first)

    def ranges(self, size: int) -> tuple[Tensor, Tensor]:
        """Ranges of at most ``size`` blocks of one segment, to add up sums in two levels.

        Returns the first block of each range and the first range of each segment, each with the number of all at the end.
        """
        counts = (self.first.diff() + size - 1) // size
        first = _first(counts)
        segment = torch.repeat_interleave(counts)
        begin = self.first[segment] + (torch.arange(len(segment), device="cpu") - first[segment]) * size
        return torch.cat([begin, self.first[-1:]]), first


def _first(counts: Tensor) -> Tensor:
    """Index of the first of each group, and of the end of the last."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def addresses(columns: Sequence[Sequence[Tensor] | None], width: int) -> array[int]:
    """The addresses of tensors, of [tensors, width], 0 where a column is missing. The first column is not.

    An array, which C++ reads as it is: to convert thousands of numbers takes longer than to update small tensors.
    """
    assert columns[0] is not None
    found = array("q", bytes(8 * width * len(columns[0])))
    for i, column in enumerate(columns):
        if column is not None:
            found[i::width] = array("q", map(Tensor.data_ptr, column))
    return found


@dataclass(frozen=True)
class TensorList:
    """Tensors that are updated together, by the same formula with the same coefficients."""

    weights: list[Tensor]
    grads: list[Tensor]
    states: dict[str, list[Tensor]]  # by name in the order of the formula, one tensor for each weight
    segments: SegmentTable
    cache: dict[str, object] = field(default_factory=dict)  # what a kernel keeps for these segments between steps

    @property
    def device(self) -> torch.device:
        return self.weights[0].device

    @cached_property
    def columns(self) -> list[list[Tensor]]:
        return [self.weights, self.grads, *self.states.values()]

    def addresses(self) -> array[int]:
        """Of [tensors, COLUMNS], 0 where a formula has no such moment."""
        return addresses(self.columns, COLUMNS)

    @cached_property
    def dtypes(self) -> list[torch.dtype]:
        """Of each column, by its first tensor."""
        return [column[0].dtype for column in self.columns]

    def is_flat(self) -> bool:
        """Whether elements can be taken in memory order by the compiled kernels.

        Each column has one of `DTYPES`, and the tensors of a row are dense and of equal strides.
        """
        if not all(
            {t.dtype for t in column} == {d} and d in DTYPES
            for d, column in zip(self.dtypes, self.columns, strict=True)
        ):
            return False
        if all(all(map(Tensor.is_contiguous, column)) for column in self.columns):
            return True
        return all(_dense(tensors) for tensors in zip(*self.columns, strict=True))

    def describe(self) -> str:
        kinds = {f"{str(t.dtype).removeprefix('torch.')} on {t.device.type}" for c in self.columns for t in c}
        return ", ".join(sorted(kinds))


def _dense(tensors: Sequence[Tensor]) -> bool:
    if all(t.is_contiguous() for t in tensors):
        return True
    shape, strides = tensors[0].shape, _strides(tensors[0])
    expected = 1  # the stride of the next dimension, from the innermost to the outermost
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return all(_strides(t) == strides for t in tensors)


def _strides(tensor: Tensor) -> list[int]:
    """Strides, with 0 for dimensions of one element, whose strides say nothing."""
    return [stride if size > 1 else 0 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)]
