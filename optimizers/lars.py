"""LARS: layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888, algorithm 1), in MLPerf's form."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bellwether.optimizers import rules
from bellwether.optimizers.sharded import Group
from bellwether.optimizers.update import Composed


class Lars(Composed):
    r"""Momentum SGD whose gradients are scaled, in each parameter, to the size of its weights.

    For each parameter :math:`w` with gradient :math:`g`::

        ratio = trust_coefficient ||w|| / (||g|| + weight_decay ||w|| + eps)     (1 where a norm is 0)
        m = momentum m + lr ratio (g + weight_decay w)
        w = w - m                                             or w - (lr ratio (...) + momentum m) with Nesterov

    The learning rate is inside the momentum, as in the paper and in MLPerf's reference: when the rate changes, the steps
    already taken keep theirs.

    Args:
        params: parameters, or param groups such as `bellwether.optimizers.groups` makes. A group with ``trust_ratio=False`` is
            plain momentum SGD: biases and normalisation, which also get ``weight_decay=0``.
        lr: learning rate; large, as the ratio is small (MLPerf's ResNet-50: 10 to 30). At least 0.
        momentum: in [0, 1).
        weight_decay: added to the gradient (L2). At least 0.
        nesterov: look ahead along the momentum.
        trust_coefficient: how much of itself a weight may change in one step at lr 1.
        eps: added to the denominator of the ratio, in units of the gradient. At least 0.
        trust_bounds: (lowest, highest) trust ratio; None for no bounds.
        maximize: go up instead of down.
        kernel: ``auto``, ``reference`` (torch), ``cpu`` (C++) or ``triton`` (on GPUs).

    Raises:
        ValueError: for values out of range and for combinations that contradict themselves.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.full((2, 2), 2.0))
    >>> optimizer = Lars([weight], lr=10.0, weight_decay=0.0)
    >>> weight.grad = torch.full((2, 2), 500.0)
    >>> optimizer.step()
    >>> round(weight[0, 0].item(), 5)  # ratio 0.001 x 4 / 1000: down by 10 x 4e-6 x 500
    1.98
    """

    rule = staticmethod(rules.lars)
    decays = ("l2",)
    adapts_gradient = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        nesterov: bool = False,
        *,
        trust_coefficient: float = 1e-3,
        eps: float = 1e-8,
        trust_bounds: tuple[float, float] | None = None,
        maximize: bool = False,
        kernel: str = "auto",
    ) -> None:
        super().__init__(
            params,
            kernel=kernel,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            decay="l2",
            nesterov=nesterov,
            trust_coefficient=trust_coefficient,
            eps=eps,
            trust_ratio=True,
            trust_bounds=trust_bounds,
            maximize=maximize,
        )

    def _ratio(self, weight: Tensor, other: Tensor, group: Group) -> Tensor:
        return super()._ratio(
            group["trust_coefficient"] * weight, other + group["weight_decay"] * weight + group["eps"], group
        )
