"""RAdam: Adam with a rectified adaptive rate (Liu et al. 2019, arXiv 1908.03265), in torch's form."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from optimizers import rules
from optimizers.composed import Composed


class RAdam(Composed):
    r"""Adam that takes plain momentum steps until its second moment can be trusted; needs no chosen warm-up::

        rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t),        rho_inf = 2 / (1 - beta2) - 1
        u = r_t m^ sqrt(1 - beta2^t) / (sqrt(v) + eps)        if rho_t > 5, else m^
        r_t = sqrt((rho_t - 4)(rho_t - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho_t))
        w = w - lr u

    Args:
        params: parameters or param groups.
        lr: learning rate. At least 0.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the denominator.
        weight_decay: added to the gradient (L2), or with ``decoupled_weight_decay`` to the update, as in
            `torch.optim.RAdam`.
    """

    direction = staticmethod(rules.radam)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decoupled=decoupled_weight_decay,
            trust_ratio=False,
        )
