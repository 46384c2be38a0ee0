"""SGD with momentum (Sutskever et al. 2013), in torch's form: the baseline."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bellwether.optimizers import rules
from bellwether.optimizers.decay import Decay
from bellwether.optimizers.update import Composed


class SGD(Composed):
    r"""Steepest descent, with momentum if asked::

        g = g + weight_decay w
        m = momentum m + (1 - dampening) g                    (m = g at first)
        w = w - lr m                                          or w - lr (g + momentum m) with Nesterov

    Args:
        params: parameters or param groups.
        lr: learning rate. At least 0.
        momentum: in [0, 1).
        dampening: in [0, 1]; 0 with Nesterov.
        weight_decay: at least 0.
        nesterov: look ahead along the momentum.
        decay: ``l2``, ``decoupled`` (SGDW), ``independent`` or ``prox``, as in `bellwether.optimizers.decay`.
        trust_ratio, trust_bounds, maximize, kernel: as in `bellwether.optimizers.Adam`. The ratio scales the momentum; one that
            scales the gradient is `bellwether.optimizers.Lars`.

    Raises:
        ValueError: for values out of range and for combinations that contradict themselves.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = SGD([weight], lr=0.1, momentum=0.5)
    >>> for _ in range(2):
    ...     weight.grad = torch.tensor([2.0])
    ...     optimizer.step()
    >>> round(weight.item(), 6)  # 1 - 0.1 x 2 - 0.1 x 3
    0.5
    """

    rule = staticmethod(rules.momentum)
    decays = ("l2", "decoupled", "independent", "prox")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        decay: Decay = "l2",
        trust_ratio: bool = False,
        trust_bounds: tuple[float, float] | None = None,
        maximize: bool = False,
        kernel: str = "auto",
    ) -> None:
        super().__init__(
            params,
            kernel=kernel,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            decay=decay,
            trust_ratio=trust_ratio,
            trust_bounds=trust_bounds,
            maximize=maximize,
        )
