"""LAMB: layer-wise adaptive large-batch optimisation (You et al. 2019, arXiv 1904.00962, algorithm 2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from optimizers import rules
from optimizers.composed import Composed


class Lamb(Composed):
    r"""Adam's direction plus decay, scaled in each parameter to the size of its weights.

    For each parameter :math:`w` with gradient :math:`g`::

        m = beta1 m + (1 - beta1) g;         v = beta2 v + (1 - beta2) g^2
        u = m^ / (sqrt(v^) + eps) + weight_decay w            (m^, v^ bias-corrected)
        w = w - lr ||w|| / ||u|| u                            (ratio 1 where a norm is 0)

    The norms are of the whole parameter, also where ZeRO has cut it over ranks (after `optimizers.attach`).

    Args:
        params: parameters, or param groups such as `optimizers.groups` makes. A group with ``trust_ratio=False`` is
            not scaled: biases and normalisation, which also get ``weight_decay=0``.
        lr: learning rate; with the ratio, the relative change of a weight in one step. Above 0.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the denominator.
        weight_decay: inside the scaled update, as in the paper.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.full((2, 2), 2.0))
    >>> optimizer = Lamb([weight], lr=0.1, weight_decay=0.0)
    >>> weight.grad = torch.ones(2, 2)
    >>> optimizer.step()
    >>> weight[0, 0].item()  # |u| = 1, ||w|| / ||u|| = 2: down by 0.1 x 2
    1.7999999523162842
    """

    direction = staticmethod(rules.adam)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decoupled=True,
            trust_ratio=True,
        )
