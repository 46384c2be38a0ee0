"""The formula of the compiled kernels' coefficients in torch: what each kernel is compared with.

See `bellwether.optimizers.kernels.coefficients.Scalars` for the formula. That the optimizers' own code is the same
formula, to the bit, is tested in test_formulas.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bellwether.optimizers.kernels.coefficients import Coefficients
from bellwether.optimizers.kernels.interface import FusedStep
from bellwether.optimizers.kernels.tensor_list import TensorList
from bellwether.optimizers.kernels.wide_weights import Convert
from bellwether.optimizers.shards.layout import squared_norm

Segment = tuple[Tensor, Tensor, list[Tensor]]  # weights, gradient, moments

fused_step: FusedStep | None = None
convert: Convert | None = None


def gradient_norms(tensors: TensorList, c: Coefficients) -> Tensor:
    return _stack(tensors, [(squared_norm(w), squared_norm(g) * c.grad**2) for w, g, _ in _segments(tensors)])


def update_moments(tensors: TensorList, c: Coefficients) -> Tensor:
    sums = []
    for w, g, moments in _segments(tensors):
        g = gradient(w, g, c, c.scale)
        move_moments(g, moments, c)
        sums.append((squared_norm(w), squared_norm(direction(w, g, moments, c))))
    return _stack(tensors, sums)


def apply_update(tensors: TensorList, c: Coefficients, rates: Tensor) -> None:
    for (w, g, moments), rate in zip(_segments(tensors), rates, strict=True):
        update = direction(w, gradient(w, g, c, c.scale), moments, c) * _factor(rate, w)
        move_weights(w, update, moments, c)


def step(tensors: TensorList, c: Coefficients, scales: Tensor | None = None) -> None:
    for i, (w, g, moments) in enumerate(_segments(tensors)):
        g = gradient(w, g, c, c.scale if scales is None else _factor(scales[i], w))
        move_moments(g, moments, c)
        move_weights(w, direction(w, g, moments, c).mul_(c.rate), moments, c)


def gradient(w: Tensor, g: Tensor, c: Coefficients, scale: float | Tensor) -> Tensor:
    if c.grad != 1:
        g = g * c.grad
    if c.l2:
        g = g.add(w, alpha=c.l2)
    return g if isinstance(scale, float) and scale == 1 else g * scale


def move_moments(g: Tensor, moments: list[Tensor], c: Coefficients) -> None:
    if moments:
        moments[0].mul_(c.beta1).add_(g, alpha=c.grad_weight)
    if c.formula in ("adam", "amsgrad"):
        moments[1].mul_(c.beta2).addcmul_(g, g, value=1 - c.beta2)
    if c.formula == "amsgrad":
        torch.maximum(moments[2], moments[1], out=moments[2])


def direction(w: Tensor, g: Tensor, moments: list[Tensor], c: Coefficients) -> Tensor:
    if c.formula in ("adam", "amsgrad"):
        update = (moments[0] * c.numerator).div_(denominator(moments, c))
    elif c.formula == "nesterov":
        update = g.add(moments[0], alpha=c.beta1).mul_(c.numerator)
    else:
        update = (moments[0] if moments else g) * c.numerator
    return update.add_(w, alpha=c.coupled_decay) if c.coupled_decay else update


def denominator(moments: list[Tensor], c: Coefficients) -> Tensor:
    return moments[-1].sqrt().mul_(c.v_scale).add_(c.eps)


def move_weights(w: Tensor, update: Tensor, moments: list[Tensor], c: Coefficients) -> None:
    if c.shrink != 1:
        w.mul_(c.shrink)
    w.sub_(update)
    if c.prox != 1:
        w.mul_(c.prox)
    if c.metric:
        w.div_(denominator(moments, c).reciprocal_().mul_(c.rate * c.metric).add_(1))


def _factor(value: Tensor, w: Tensor) -> Tensor:
    """A scalar as a tensor to multiply with, in at least float32: the smallest rates underflow in 16 bits."""
    return value.to(torch.promote_types(w.dtype, torch.float32)).view([1] * w.dim())


def _segments(tensors: TensorList) -> Iterator[Segment]:
    table = tensors.segments
    rows = zip(table.tensor.tolist(), table.offset.tolist(), table.length.tolist(), strict=True)
    for index, offset, length in rows:
        views = [column[index] for column in tensors.columns]
        if length != views[0].numel():
            views = [t.view(-1)[offset : offset + length] for t in views]
        yield views[0], views[1], views[2:]


def _stack(tensors: TensorList, sums: list[tuple[Tensor, Tensor]]) -> Tensor:
    if not sums:
        return torch.zeros(2, 0, dtype=torch.float64, device=tensors.device)
    return torch.stack([torch.stack(pair) for pair in sums], dim=1)
