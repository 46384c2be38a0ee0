"""float32 copies of 16-bit weights for one update, and where their elements lie in the parameters."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from bellwether.optimizers.kernels.tensor_list import BlockTable, SegmentTable, addresses
from bellwether.optimizers.shards.layout import ShardLayout

# To float32 copies; back to nearest with what Kahan summation keeps; back up or down at random.
Conversion = Literal["widen", "kahan", "stochastic"]
CONVERSIONS: tuple[Conversion, ...] = get_args(Conversion)


@dataclass(frozen=True)
class WideWeights:
    """16-bit weights of a list of tensors with their float32 copies."""

    wide: list[Tensor]  # float32
    narrow: list[Tensor]
    kept: list[Tensor] | None  # what Kahan summation keeps, of the dtype of `narrow`
    shards: Sequence[ShardLayout]
    cache: dict[str, object]  # what is computed once for these shards

    def addresses(self) -> array[int]:
        """Of [tensors, 3]: wide, narrow, kept."""
        return addresses((self.wide, self.narrow, self.kept), 3)

    def blocks(self, size: int) -> Tensor:
        """int64 [blocks, 5]: tensor, offset, length, index of the parameter, first element in the flattened parameter."""
        key = f"slices in blocks of {size}"
        if key not in self.cache:
            self.cache[key] = _blocks(self.shards, size)
        found = self.cache[key]
        assert isinstance(found, Tensor)
        return found

    @property
    def names(self) -> list[str]:
        """Of the parameters, in the order of their indices."""
        return [parameter.name for shard in self.shards for parameter in shard.parameters]


Convert = Callable[[Conversion, WideWeights, Tensor | None], None]


def _blocks(shards: Sequence[ShardLayout], size: int) -> Tensor:
    rows, before = [], 0
    for i, shard in enumerate(shards):
        rows += [(i, part.offset, part.length, before + part.index, part.start) for part in shard.slices]
        before += len(shard.parameters)
    tensor, offset, length, parameter, start = torch.tensor(rows, dtype=torch.int64, device="cpu").view(-1, 5).t()
    slices = SegmentTable(tensor, offset, length, parameter, before, None, False)
    index, begin, count, row = BlockTable.of(slices, size).table.t()
    return torch.stack([index, begin, count, parameter[row], start[row] + begin - offset[row]], dim=1)
