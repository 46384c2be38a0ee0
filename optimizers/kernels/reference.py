"""The arithmetic of every optimizer here, in torch. This is the specification; the other kernels must equal it.

With weights w, gradient g, first and second moment m and v, all of a segment, any shape and dtype::

    g = scale (grad g + l2 w)
    m = beta1 m + weight1 g                    where there is momentum
    v = beta2 v + (1 - beta2) g^2              where it is adaptive; the largest v so far for AMSGrad
    u = numerator m / (root sqrt(v) + eps)     or numerator times g, m, or g + beta1 m
    u = u + inside w
    w = prox (shrink w - rate u)               divided by 1 + rate metric / (root sqrt(v) + eps)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bellwether.optimizers.kernels.tensor_list import Coefficients, TensorList
from bellwether.optimizers.shards.layout import squared_norm

Segment = tuple[Tensor, Tensor, list[Tensor]]  # weights, gradient, moments


def gradient_norms(batch: TensorList, c: Coefficients) -> Tensor:
    return _stack(
        batch, [(squared_norm(w), squared_norm(g) * c.grad**2) for w, g, _ in _segments(batch)]
    )  # squared, so that a sign does not count


def advance(batch: TensorList, c: Coefficients) -> Tensor:
    sums = []
    for w, g, moments in _segments(batch):
        g = gradient(w, g, c, c.scale)
        move(g, moments, c)
        sums.append((squared_norm(w), squared_norm(direction(w, g, moments, c))))
    return _stack(batch, sums)


def descend(batch: TensorList, c: Coefficients, rates: Tensor) -> None:
    for (w, g, moments), rate in zip(_segments(batch), rates, strict=True):
        update = direction(w, gradient(w, g, c, c.scale), moments, c) * _factor(rate, w)
        _take(w, update, moments, c)


def step(batch: TensorList, c: Coefficients, scales: Tensor | None = None) -> None:
    for i, (w, g, moments) in enumerate(_segments(batch)):
        g = gradient(w, g, c, c.scale if scales is None else _factor(scales[i], w))
        move(g, moments, c)
        _take(w, direction(w, g, moments, c).mul_(c.rate), moments, c)


def gradient(w: Tensor, g: Tensor, c: Coefficients, scale: float | Tensor) -> Tensor:
    """What the rule sees as its gradient: fresh memory, unless that is the gradient as it is."""
    if c.grad != 1:
        g = g * c.grad
    if c.l2:
        g = g.add(w, alpha=c.l2)
    return g if isinstance(scale, float) and scale == 1 else g * scale


def move(g: Tensor, moments: list[Tensor], c: Coefficients) -> None:
    """The moments, in place."""
    if moments:
        moments[0].mul_(c.beta1).add_(g, alpha=c.weight1)
    if c.formula in ("adam", "amsgrad"):
        moments[1].mul_(c.beta2).addcmul_(g, g, value=1 - c.beta2)
    if c.formula == "amsgrad":
        torch.maximum(moments[2], moments[1], out=moments[2])


def direction(w: Tensor, g: Tensor, moments: list[Tensor], c: Coefficients) -> Tensor:
    """Where the weights go down, in fresh memory."""
    if c.formula in ("adam", "amsgrad"):
        update = (moments[0] * c.numerator).div_(denominator(moments, c))
    elif c.formula == "nesterov":
        update = g.add(moments[0], alpha=c.beta1).mul_(c.numerator)
    else:
        update = (moments[0] if moments else g) * c.numerator
    return update.add_(w, alpha=c.inside) if c.inside else update


def denominator(moments: list[Tensor], c: Coefficients) -> Tensor:
    return moments[-1].sqrt().mul_(c.root).add_(c.eps)


def _take(w: Tensor, update: Tensor, moments: list[Tensor], c: Coefficients) -> None:
    """Subtract what the learning rate has left of the direction, between the factors of the decay."""
    if c.shrink != 1:
        w.mul_(c.shrink)
    w.sub_(update)
    if c.prox != 1:
        w.mul_(c.prox)
    if c.metric:
        w.div_(denominator(moments, c).reciprocal_().mul_(c.rate * c.metric).add_(1))


def _factor(value: Tensor, w: Tensor) -> Tensor:
    """A scalar tensor to multiply with, in no less than float32: the smallest rates are nothing in 16 bits."""
    return value.to(torch.promote_types(w.dtype, torch.float32)).view([1] * w.dim())


def _segments(batch: TensorList) -> Iterator[Segment]:
    """Views of the batch's tensors. A tensor that is one segment is taken as it is, whatever its strides."""
    layout = batch.layout
    rows = zip(layout.tensor.tolist(), layout.offset.tolist(), layout.length.tolist(), strict=True)
    for index, offset, length in rows:
        tensors = [column[index] for column in batch.columns]
        if length != tensors[0].numel():
            tensors = [t.view(-1)[offset : offset + length] for t in tensors]
        yield tensors[0], tensors[1], tensors[2:]


def _stack(batch: TensorList, sums: list[tuple[Tensor, Tensor]]) -> Tensor:
    if not sums:
        return torch.zeros(2, 0, dtype=torch.float64, device=batch.device)
    return torch.stack([torch.stack(pair) for pair in sums], dim=1)
