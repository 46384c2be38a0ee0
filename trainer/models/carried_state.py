"""The state that a model carries from step to step for each stream of its data: this rank's rows of one table over all streams."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass
class CarriedState:
    """The state of some streams between two steps.

    In a checkpoint it is keyed by stream, as the slices of tensors over all streams, so that it does not matter which rank had which.

    Attributes:
        streams: their numbers, ascending.
        total: the number of streams of all ranks.
        tensors: by name, with a row for each of `streams`: [S, ...].
        first_token: where in each stream the next step begins; None where that is not known. The state belongs to that place alone.
    """

    streams: Sequence[int]
    total: int
    tensors: State
    first_token: int | None = None

    def __post_init__(self) -> None:
        devices = [tensor.device for tensor in self.tensors.values()]
        self._numbers = torch.tensor(self.streams, dtype=torch.int64, device=devices[0] if devices else None)

    def read(self, streams: Tensor) -> State:
        """The state of some of the streams, given by their numbers [B]. Does not wait for the device."""
        index = torch.searchsorted(self._numbers, streams)
        return {name: table[index] for name, table in self.tensors.items()}

    def write(self, streams: Tensor, state: Mapping[str, Tensor]) -> None:
        """Replace the state of some of the streams."""
        index = torch.searchsorted(self._numbers, streams)
        for name, table in self.tensors.items():
            table[index] = state[name].detach().to(table.dtype)

    def shapes(self) -> dict[str, list[int]]:
        """The shapes of the tables over all streams, [total, ...]."""
        return {name: [self.total, *table.shape[1:]] for name, table in self.tensors.items()}

    def slices(self) -> Iterator[tuple[str, int, Tensor]]:
        """Name, offset and elements of each slice of the flattened tables that these streams are. The elements are the tables' own."""
        for name, table in self.tensors.items():
            for first, last in self._runs():
                part = table[first : last + 1].view(-1)
                yield name, self.streams[first] * (part.numel() // (last + 1 - first)), part

    def _runs(self) -> Iterator[tuple[int, int]]:
        """First and last row of each run of consecutive streams."""
        for _, run in itertools.groupby(enumerate(self.streams), lambda pair: pair[1] - pair[0]):
            rows = [row for row, _ in run]
            yield rows[0], rows[-1]
