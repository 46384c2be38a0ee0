"""The input of a kernel: a list of tensors, and where in them each parameter lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from bellwether.optimizers.shards.layout import ShardLayout, local

COLUMNS = 5  # weights, gradients, and at most three moments


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
    def of(cls, segments: SegmentTable, size: int) -> BlockTable:
        counts = (segments.length + size - 1) // size
        first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        segment = torch.repeat_interleave(counts)
        begin = (torch.arange(len(segment), device="cpu") - first[segment]) * size
        length = (segments.length[segment] - begin).clamp(max=size)
        table = torch.stack([segments.tensor[segment], segments.offset[segment] + begin, length, segment], dim=1)
        return cls(table, first)


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

    def addresses(self) -> list[int]:
        """Of [tensors, COLUMNS], 0 where a formula has no such moment."""
        missing = [0] * (COLUMNS - len(self.columns))
        return [a for row in zip(*self.columns, strict=True) for a in [*(t.data_ptr() for t in row), *missing]]

    def is_flat(self) -> bool:
        """Whether all tensors are float32, dense and of equal strides, so that elements can be taken in memory order."""
        return all(t.dtype == torch.float32 for column in self.columns for t in column) and all(
            _dense(tensors) for tensors in zip(*self.columns, strict=True)
        )

    def describe(self) -> str:
        kinds = {f"{str(t.dtype).removeprefix('torch.')} on {t.device.type}" for c in self.columns for t in c}
        return ", ".join(sorted(kinds))


def _dense(tensors: Sequence[Tensor]) -> bool:
    if all(t.is_contiguous() for t in tensors):
        return True
    first = tensors[0]
    return first.stride() == first.clone(memory_format=torch.preserve_format).stride() and all(
        t.stride() == first.stride() for t in tensors
    )
