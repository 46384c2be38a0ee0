"""RAdam: Adam with a rectified adaptive rate (Liu et al. 2019, arXiv 1908.03265), in torch's form."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bellwether.optimizers import rules
from bellwether.optimizers.decay import FORMS, Decay
from bellwether.optimizers.update import Composed


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
        eps: added to the denominator, in units of the gradient. At least 0.
        weight_decay: at least 0.
        decoupled_weight_decay: as in `torch.optim.RAdam`; the same as ``decay="decoupled"``.
        decay: the form of the decay, any of `bellwether.optimizers.decay`; None goes by ``decoupled_weight_decay``.
        trust_ratio, trust_bounds, maximize, kernel: as in `bellwether.optimizers.Adam`.

    Raises:
        ValueError: for values out of range and for combinations that contradict themselves.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = RAdam([weight], lr=0.1)
    >>> weight.grad = torch.tensor([0.5, -4.0])
    >>> optimizer.step()
    >>> weight.tolist()  # the first steps are momentum's: lr times the gradient
    [0.949999988079071, 2.4000000953674316]
    """

    rule = staticmethod(rules.radam)
    decays = FORMS

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        decay: Decay | None = None,
        trust_ratio: bool = False,
        trust_bounds: tuple[float, float] | None = None,
        maximize: bool = False,
        kernel: str = "auto",
    ) -> None:
        if decay is not None and decoupled_weight_decay and decay != "decoupled":
            raise ValueError(f"decay={decay!r} with decoupled_weight_decay=True: write decay={decay!r} alone")
        super().__init__(
            params,
            kernel=kernel,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decay=decay or ("decoupled" if decoupled_weight_decay else "l2"),
            trust_ratio=trust_ratio,
            trust_bounds=trust_bounds,
            maximize=maximize,
        )
