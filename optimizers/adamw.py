"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv 1711.05101), in torch's form."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bellwether.optimizers.adam import Adam
from bellwether.optimizers.decay import Decay


class AdamW(Adam):
    r"""Adam, with a decay that the second moment does not divide away::

        m = beta1 m + (1 - beta1) g;         v = beta2 v + (1 - beta2) g^2
        w = w - lr (m^ / (sqrt(v^) + eps) + weight_decay w)   (m^, v^ bias-corrected)

    Args:
        params: parameters or param groups.
        lr: learning rate, the change of a weight in one step at most about. At least 0.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the denominator, in units of the gradient. At least 0.
        weight_decay: times lr, as in `torch.optim.AdamW`; with ``decay="independent"`` times the schedule's multiplier
            alone, as in the paper.
        amsgrad, decay, trust_ratio, trust_bounds, maximize, kernel: as in `bellwether.optimizers.Adam`.

    Raises:
        ValueError: for values out of range and for combinations that contradict themselves.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = AdamW([weight], lr=0.1, weight_decay=0.5)
    >>> weight.grad = torch.tensor([3.0])
    >>> optimizer.step()
    >>> round(weight.item(), 6)  # 2 - 0.1 (1 + 0.5 x 2)
    1.8
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        decay: Decay = "decoupled",
        trust_ratio: bool = False,
        trust_bounds: tuple[float, float] | None = None,
        maximize: bool = False,
        kernel: str = "auto",
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            decay=decay,
            trust_ratio=trust_ratio,
            trust_bounds=trust_bounds,
            maximize=maximize,
            kernel=kernel,
        )
