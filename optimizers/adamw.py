"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv 1711.05101), in torch's form."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bellwether.optimizers.adam import Adam
from bellwether.optimizers.deprecation import renamed_keywords
from bellwether.optimizers.rule import Group, State
from bellwether.optimizers.scalars import Number, learning_rate
from bellwether.optimizers.weight_decay import WeightDecayMode


class AdamW(Adam):
    r"""Adam with a weight decay that the second moment does not divide away::

        m = beta1 m + (1 - beta1) g;         v = beta2 v + (1 - beta2) g^2
        w = w - lr (m^ / (sqrt(v^) + eps) + weight_decay w)   (m^, v^ bias-corrected)

    Args:
        params: parameters or param groups.
        lr: learning rate, about the largest change of a weight in one step. At least 0.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the denominator, in units of the gradient. At least 0.
        weight_decay: multiplied by lr, as in `torch.optim.AdamW`; with ``weight_decay_mode="independent"`` multiplied by
            the schedule's multiplier alone, as in the paper.
        amsgrad, weight_decay_mode, trust_ratio, trust_bounds, peak_lr, maximize, kernel: as in `bellwether.optimizers.Adam`.
        max_grad_norm: clip the global norm of the gradients at this, for engines that do not; None: do not.
        stochastic_rounding, kahan_sum, rounding_seed: for 16-bit weights: `bellwether.optimizers.rounding`.
        foreach, capturable, differentiable, fused: torch's flags; those that cannot be honoured are refused.

    Raises:
        ValueError: for values out of range and for combinations that contradict each other.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = AdamW([weight], lr=0.1, weight_decay=0.5)
    >>> weight.grad = torch.tensor([3.0])
    >>> optimizer.step()
    >>> round(weight.item(), 6)  # 2 - 0.1 (1 + 0.5 x 2)
    1.8
    """

    @renamed_keywords
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        weight_decay_mode: WeightDecayMode = "decoupled",
        trust_ratio: bool = False,
        trust_bounds: tuple[float, float] | None = None,
        peak_lr: float | None = None,
        maximize: bool = False,
        kernel: str = "auto",
        max_grad_norm: float | None = None,
        stochastic_rounding: bool = False,
        kahan_sum: bool = False,
        rounding_seed: int = 0,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            weight_decay_mode=weight_decay_mode,
            trust_ratio=trust_ratio,
            trust_bounds=trust_bounds,
            peak_lr=peak_lr,
            maximize=maximize,
            kernel=kernel,
            max_grad_norm=max_grad_norm,
            stochastic_rounding=stochastic_rounding,
            kahan_sum=kahan_sum,
            rounding_seed=rounding_seed,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )

    # update_moments and direction are Adam's: m, v, and m^ / (sqrt(v^) + eps).

    def apply_update(self, w: Tensor, update: Tensor, state: State, group: Group, step: Number) -> None:
        if group["weight_decay_mode"] == "decoupled" and not group["trust_ratio"]:
            w.mul_(1 - learning_rate(group) * group["weight_decay"]).sub_(update)  # update: lr m^ / (sqrt(v^) + eps)
        else:
            super().apply_update(w, update, state, group, step)
