"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv 1711.05101), in torch's form."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from optimizers import rules
from optimizers.composed import Composed


class AdamW(Composed):
    r"""Adam, with a decay that the second moment does not divide away::

        m = beta1 m + (1 - beta1) g;         v = beta2 v + (1 - beta2) g^2
        w = w - lr (m^ / (sqrt(v^) + eps) + weight_decay w)   (m^, v^ bias-corrected)

    Args:
        params: parameters or param groups.
        lr: learning rate. At least 0.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the denominator.
        weight_decay: times lr, as in `torch.optim.AdamW`.
    """

    direction = staticmethod(rules.adam)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decoupled=True,
            trust_ratio=False,
        )
