"""Runs a rule's own code on a list of tensors, with torch's operations. The compiled kernels are tested against this."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bellwether.optimizers.kernels.interface import FusedStep
from bellwether.optimizers.kernels.tensor_list import TensorList
from bellwether.optimizers.kernels.wide_weights import Convert
from bellwether.optimizers.scalars import Number, learning_rate
from bellwether.optimizers.shards.layout import squared_norm

if TYPE_CHECKING:
    from bellwether.optimizers.rule import Group, Rule, State

Segment = tuple[Tensor, Tensor, "State"]  # weights, gradient, state

fused_step: FusedStep | None = None
convert: Convert | None = None


@dataclass(frozen=True)
class RuleCall:
    """A rule at one step of one param group: what `Coefficients` are to the compiled kernels."""

    rule: Rule
    group: Group
    step: Number
    grad: float = 1.0  # factor of the gradient: -1 to maximize, 1 / norm to normalize

    def gradient(self, w: Tensor, g: Tensor, rate: Number) -> Tensor:
        return self.rule.gradient(w, g if self.grad == 1 else g * self.grad, rate, self.group)

    def direction(self, w: Tensor, g: Tensor, state: State) -> Tensor:
        """In memory that may be overwritten."""
        u = self.rule.direction(w, g, state, self.group, self.step)
        inputs = (w, g, *state.values())
        return u.clone() if any(u.data_ptr() == tensor.data_ptr() for tensor in inputs) else u


def gradient_norms(tensors: TensorList, call: RuleCall) -> Tensor:
    # The factor squared, so that its sign does not matter.
    sums = [(squared_norm(w), squared_norm(g) * call.grad**2) for w, g, _ in segments(tensors)]
    return _stack(tensors, sums)


def update_moments(tensors: TensorList, call: RuleCall) -> Tensor:
    sums = []
    for w, g, state in segments(tensors):
        g = call.gradient(w, g, 1.0)
        call.rule.update_moments(g, state, call.group, call.step)
        sums.append((squared_norm(w), squared_norm(call.direction(w, g, state))))
    return _stack(tensors, sums)


def apply_update(tensors: TensorList, call: RuleCall, rates: Tensor) -> None:
    for (w, g, state), rate in zip(segments(tensors), rates, strict=True):
        update = call.direction(w, call.gradient(w, g, 1.0), state) * _factor(rate, w)
        call.rule.apply_update(w, update, state, call.group, call.step)


def step(tensors: TensorList, call: RuleCall, scales: Tensor | None = None) -> None:
    for i, (w, g, state) in enumerate(segments(tensors)):
        g = call.gradient(w, g, learning_rate(call.group) if scales is None else _factor(scales[i], w))
        call.rule.update_moments(g, state, call.group, call.step)
        update = call.direction(w, g, state).mul_(call.rule.rate(call.group))
        call.rule.apply_update(w, update, state, call.group, call.step)


def _factor(value: Tensor, w: Tensor) -> Tensor:
    """A scalar as a tensor to multiply with, in at least float32: the smallest rates underflow in 16 bits."""
    return value.to(torch.promote_types(w.dtype, torch.float32)).view([1] * w.dim())


def segments(tensors: TensorList) -> Iterator[Segment]:
    """The segments, as views. A tensor that is one segment is taken as it is, whatever its strides."""
    table = tensors.segments
    rows = zip(table.tensor.tolist(), table.offset.tolist(), table.length.tolist(), strict=True)
    for index, offset, length in rows:
        views = [column[index] for column in tensors.columns]
        if length != views[0].numel():
            views = [t.view(-1)[offset : offset + length] for t in views]
        yield views[0], views[1], dict(zip(tensors.states, views[2:], strict=True))


def _stack(tensors: TensorList, sums: list[tuple[Tensor, Tensor]]) -> Tensor:
    if not sums:
        return torch.zeros(2, 0, dtype=torch.float64, device=tensors.device)
    return torch.stack([torch.stack(pair) for pair in sums], dim=1)
