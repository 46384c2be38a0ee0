"""Adam (Kingma and Ba 2014, arXiv 1412.6980), in torch's form."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, maximum

from bellwether.optimizers.base import RuleOptimizer
from bellwether.optimizers.deprecation import renamed_keywords
from bellwether.optimizers.kernels.coefficients import Coefficients
from bellwether.optimizers.rule import Group, Rule, State
from bellwether.optimizers.scalars import Number, sqrt
from bellwether.optimizers.weight_decay import MODES, WeightDecayMode, add_to_direction


class AdamRule(Rule):
    """The formula of Adam, and with ``weight_decay_mode="decoupled"`` of AdamW."""

    weight_decay_modes = MODES

    def state_names(self, group: Group) -> tuple[str, ...]:
        return adam_state_names(group)

    def update_moments(self, g: Tensor, state: State, group: Group, step: Number) -> None:
        beta1, beta2 = group["betas"]
        m, v = state["exp_avg"], state["exp_avg_sq"]
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        if group["amsgrad"]:
            maximum(state["max_exp_avg_sq"], v, out=state["max_exp_avg_sq"])

    def direction(self, w: Tensor, g: Tensor, state: State, group: Group, step: Number) -> Tensor:
        m_hat = state["exp_avg"] * (1 / (1 - group["betas"][0] ** step))
        u = m_hat.div_(_denominator(state, group, step))
        return add_to_direction(u, w, group)

    def metric(self, scale: Number, state: State, group: Group, step: Number) -> Tensor:
        return _denominator(state, group, step).reciprocal_().mul_(scale)

    def coefficients(self, group: Group, step: int) -> Coefficients:
        return adam_coefficients(group, step)


class Adam(AdamRule, RuleOptimizer):
    r"""Adam, by default with L2 weight decay, most of which the second moment divides away again::

        g = g + weight_decay w
        m = beta1 m + (1 - beta1) g;         v = beta2 v + (1 - beta2) g^2
        w = w - lr m^ / (sqrt(v^) + eps)                      (m^, v^ bias-corrected)

    Args:
        params: parameters or param groups.
        lr: learning rate, about the largest change of a weight in one step. At least 0.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the denominator, in units of the gradient. At least 0.
        weight_decay: at least 0; its unit depends on the mode.
        weight_decay_mode: any of `bellwether.optimizers.weight_decay`.
        amsgrad: divide by the largest second moment so far (Reddi et al. 2018, 1904.09237).
        trust_ratio: scale each parameter's update to the norm of its weights, as LAMB does.
        trust_bounds: (lowest, highest) trust ratio.
        peak_lr: the highest learning rate of the schedule, for the modes ``independent`` and ``prox``; None: the
            scheduler's, or lr. A step with a higher lr is refused.
        maximize: ascend instead of descend.
        kernel: ``auto``, ``reference`` (torch), ``cpu`` (C++) or ``triton`` (on GPUs).
        decoupled_weight_decay: as in `torch.optim.Adam`; the same as ``weight_decay_mode="decoupled"``.
        max_grad_norm: clip the global norm of the gradients at this, for engines that do not; None: do not.
        stochastic_rounding, kahan_sum, rounding_seed: for 16-bit weights: `bellwether.optimizers.rounding`.
        foreach, capturable, differentiable, fused: torch's flags; those that cannot be honoured are refused.

    Raises:
        ValueError: for values out of range and for combinations that contradict each other.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = Adam([weight], lr=0.1)
    >>> weight.grad = torch.tensor([0.3, -40.0])
    >>> optimizer.step()
    >>> weight.tolist()  # the first step is lr in each element, whatever the size of the gradient
    [0.8999999761581421, 2.0999999046325684]
    """

    @renamed_keywords
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        weight_decay_mode: WeightDecayMode = "l2",
        trust_ratio: bool = False,
        trust_bounds: tuple[float, float] | None = None,
        peak_lr: float | None = None,
        maximize: bool = False,
        kernel: str = "auto",
        decoupled_weight_decay: bool = False,
        max_grad_norm: float | None = None,
        stochastic_rounding: bool = False,
        kahan_sum: bool = False,
        rounding_seed: int = 0,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        if decoupled_weight_decay and weight_decay_mode not in ("l2", "decoupled"):
            mode = f"weight_decay_mode={weight_decay_mode!r}"
            raise ValueError(f"{mode} with decoupled_weight_decay=True: write {mode} alone")
        super().__init__(
            params,
            kernel=kernel,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            weight_decay_mode="decoupled" if decoupled_weight_decay else weight_decay_mode,
            trust_ratio=trust_ratio,
            trust_bounds=trust_bounds,
            peak_lr=peak_lr,
            maximize=maximize,
            max_grad_norm=max_grad_norm,
            stochastic_rounding=stochastic_rounding,
            kahan_sum=kahan_sum,
            rounding_seed=rounding_seed,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )


def _denominator(state: State, group: Group, step: Number) -> Tensor:
    """sqrt(v^) + eps. With AMSGrad v is the largest so far, corrected as in torch."""
    v = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    root_of_v_hat = v.sqrt().mul_(1 / sqrt(1 - group["betas"][1] ** step))
    return root_of_v_hat.add_(group["eps"])


def adam_state_names(group: Group) -> tuple[str, ...]:
    """The moments of Adam and its relatives."""
    return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group.get("amsgrad") else ("exp_avg", "exp_avg_sq")


def adam_coefficients(group: Group, step: int, *, bias_correction: bool = True) -> Coefficients:
    """Adam in the numbers of the compiled kernels."""
    beta1, beta2 = group["betas"]
    return Coefficients(
        formula="amsgrad" if group.get("amsgrad") else "adam",
        rate=float(group["lr"]),
        beta1=beta1,
        grad_weight=1 - beta1,
        beta2=beta2,
        numerator=1 / (1 - beta1**step) if bias_correction else 1.0,
        v_scale=1 / math.sqrt(1 - beta2**step) if bias_correction else 1.0,
        eps=group["eps"],
    )
