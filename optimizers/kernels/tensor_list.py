"""What a kernel is given: tensors, where in them each parameter lies, and the numbers of the formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from bellwether.optimizers.shards.layout import ShardLayout, local

Formula = Literal["adam", "amsgrad", "momentum", "nesterov", "plain"]

STATE: dict[Formula, tuple[str, ...]] = {
    "adam": ("exp_avg", "exp_avg_sq"),
    "amsgrad": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "momentum": ("momentum_buffer",),
    "nesterov": ("momentum_buffer",),
    "plain": (),
}

COLUMNS = 5  # weights, gradients, and at most three moments


@dataclass(frozen=True)
class Coefficients:
    """One update in numbers; `reference` says in a few lines what each does.

    Every rule, form of decay and option of this package is a choice of these. They are computed in double precision.
    """

    formula: Formula
    rate: float  # the learning rate; with a trust ratio, each segment has its own instead
    grad: float = 1.0  # factor of the gradient: -1 to maximise, 1 / norm to normalise
    l2: float = 0.0  # decay that is added to the gradient
    scale: float = 1.0  # factor of gradient plus decay; LARS has one for each segment instead
    beta1: float = 0.0  # momentum
    weight1: float = 1.0  # what of the gradient goes into the momentum
    beta2: float = 0.0
    numerator: float = 1.0  # factor of the first moment in the direction
    root: float = 1.0  # factor of the root of the second moment
    eps: float = 0.0
    inside: float = 0.0  # decay that is part of the direction, and thus of what a trust ratio scales
    shrink: float = 1.0  # factor of the weights before the step
    prox: float = 1.0  # factor of the weights after the step
    metric: float = 0.0  # decay of the proximal step in Adam's metric

    def scalars(self) -> tuple[float, ...]:
        """The numbers, in the order in which the compiled kernels take them."""
        return tuple(
            float(x)  # a user's 0 is an int, and Triton compiles anew for some of those
            for x in (
                self.rate, self.grad, self.l2, self.scale, self.beta1, self.weight1, self.beta2, 1 - self.beta2,
                self.numerator, self.root, self.eps, self.inside, self.shrink, self.prox, self.rate * self.metric,
            )
        )  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Where the segments lie in the tensors of a batch. A segment is a run of elements of one parameter."""

    tensor: Tensor  # int64 [segments], index of its tensor
    offset: Tensor  # int64 [segments], elements from the beginning of the tensor
    length: Tensor  # int64 [segments]
    slot: Tensor  # int64 [segments], index of its parameter among all of the batch
    parameters: int
    counts: Tensor | None  # bool [parameters], whether this rank's sums count; None: all do
    repeats: bool  # whether a parameter has several segments
    _copies: dict[object, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, shards: Sequence[ShardLayout], by_parameter: bool) -> Layout:
        """Of shards, cut at the borders of parameters, or each as one segment where that does not matter."""
        rows: list[tuple[int, int, int, int]] = []
        before = 0
        for index, shard in enumerate(shards):
            if by_parameter:
                for offset, length, piece in shard.segments():
                    rows.append((index, offset, length, before + piece))
            else:
                rows.append((index, 0, local(shard.tensor).numel(), before))
            before += len(shard.parameters)
        table = torch.tensor(rows, dtype=torch.int64, device="cpu").view(-1, 4).t().contiguous()
        counts = None
        if not all(shard.counts for shard in shards):
            counts = torch.tensor([shard.counts for shard in shards for _ in shard.parameters], device="cpu")
        repeats = len({row[3] for row in rows}) < len(rows)
        return cls(table[0], table[1], table[2], table[3], before, counts, repeats)

    def slot_on(self, device: torch.device) -> Tensor:
        return self._on("slot", self.slot, device)

    def _on(self, name: str, table: Tensor, device: torch.device) -> Tensor:
        """A table on a device: copied there once, as a copy from pageable memory waits for a GPU."""
        if (name, device) not in self._copies:
            self._copies[name, device] = table.to(device)
        return self._copies[name, device]

    def by_slot(self, values: Tensor) -> Tensor:
        """The sums of each parameter [rows, parameters] from those of the segments [rows, segments]."""
        sums = values.new_zeros(values.shape[0], self.parameters)
        if not self.repeats:
            sums[:, self.slot_on(values.device)] = values
        else:  # one fragment after the other, so that the bits are the same every time
            for i, s in enumerate(self.slot.tolist()):
                sums[:, s] += values[:, i]
        return sums if self.counts is None else sums * self._on("counts", self.counts, values.device)


@dataclass(frozen=True)
class Blocks:
    """A layout in blocks of equal size, so that the work is shared evenly whatever the sizes of the parameters."""

    table: Tensor  # int64 [blocks, 4]: tensor, offset, length, segment; segments in rising order
    first: Tensor  # int64 [segments + 1], the first block of each segment, and the number of all

    @classmethod
    def of(cls, layout: Layout, size: int) -> Blocks:
        counts = (layout.length + size - 1) // size
        first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        segment = torch.repeat_interleave(counts)
        begin = (torch.arange(len(segment), device="cpu") - first[segment]) * size
        length = (layout.length[segment] - begin).clamp(max=size)
        table = torch.stack([layout.tensor[segment], layout.offset[segment] + begin, length, segment], dim=1)
        return cls(table, first)


@dataclass(frozen=True)
class TensorList:
    """Tensors that are updated with the same coefficients."""

    weights: list[Tensor]
    grads: list[Tensor]
    states: list[list[Tensor]]  # for each name in STATE[formula], one for each weight
    layout: Layout
    tables: dict[str, object] = field(default_factory=dict)  # what a kernel keeps of a layout from step to step

    @property
    def device(self) -> torch.device:
        return self.weights[0].device

    @cached_property
    def columns(self) -> list[list[Tensor]]:
        return [self.weights, self.grads, *self.states]

    def addresses(self) -> list[int]:
        """Of [tensors, COLUMNS], 0 where a formula has no such moment."""
        missing = [0] * (COLUMNS - len(self.columns))
        return [a for row in zip(*self.columns, strict=True) for a in [*(t.data_ptr() for t in row), *missing]]

    def is_flat(self) -> bool:
        """Whether all is float32 and laid out alike without gaps, so that elements can be taken in memory's order."""
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


class Kernel(Protocol):
    """What each implementation offers. Sums are float64 [2, segments], on the batch's device."""

    def gradient_norms(self, batch: TensorList, c: Coefficients) -> Tensor:
        """||w||^2 and ||g||^2 of each segment, g as `Coefficients.grad` makes it. Changes nothing."""

    def advance(self, batch: TensorList, c: Coefficients) -> Tensor:
        """Move the moments. Returns ||w||^2 and ||u||^2 of each segment, u the direction."""

    def descend(self, batch: TensorList, c: Coefficients, rates: Tensor) -> None:
        """Move the weights by what `advance` has prepared; ``rates`` [segments] in place of `Coefficients.rate`."""

    def step(self, batch: TensorList, c: Coefficients, scales: Tensor | None = None) -> None:
        """Move the moments and the weights at once; ``scales`` [segments] in place of `Coefficients.scale`."""
