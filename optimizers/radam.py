"""RAdam: Adam with a rectified adaptive rate (Liu et al. 2019, arXiv 1908.03265), in torch's form."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bellwether.optimizers.adam import adam_coefficients, adam_state_names
from bellwether.optimizers.base import RuleOptimizer
from bellwether.optimizers.deprecation import renamed_keywords
from bellwether.optimizers.kernels.coefficients import Coefficients
from bellwether.optimizers.rule import Group, State
from bellwether.optimizers.scalars import Number, choose, sqrt
from bellwether.optimizers.weight_decay import MODES, WeightDecayMode, add_to_direction


class RAdam(RuleOptimizer):
    r"""Adam with plain momentum steps while the variance of its second moment is unbounded; needs no warm-up::

        rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t),        rho_inf = 2 / (1 - beta2) - 1
        u = r_t m^ sqrt(1 - beta2^t) / (sqrt(v) + eps)        if rho_t > 5, else m^
        r_t = sqrt((rho_t - 4)(rho_t - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho_t))
        w = w - lr u

    Args:
        params: parameters or param groups.
        lr: learning rate. At least 0.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the denominator, in units of the gradient. At least 0.
        weight_decay: at least 0.
        decoupled_weight_decay: as in `torch.optim.RAdam`; the same as ``weight_decay_mode="decoupled"``.
        weight_decay_mode: any of `bellwether.optimizers.weight_decay`; None: by ``decoupled_weight_decay``.
        trust_ratio, trust_bounds, peak_lr, maximize, kernel: as in `bellwether.optimizers.Adam`.
        max_grad_norm: clip the global norm of the gradients at this, for engines that do not; None: do not.
        stochastic_rounding, kahan_sum, rounding_seed: for 16-bit weights: `bellwether.optimizers.rounding`.
        foreach, capturable, differentiable, fused: torch's flags; those that cannot be honoured are refused.

    Raises:
        ValueError: for values out of range and for combinations that contradict each other.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = RAdam([weight], lr=0.1)
    >>> weight.grad = torch.tensor([0.5, -4.0])
    >>> optimizer.step()
    >>> weight.tolist()  # the first steps are SGD's with momentum: lr times the gradient
    [0.949999988079071, 2.4000000953674316]
    """

    weight_decay_modes = MODES

    @renamed_keywords
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        weight_decay_mode: WeightDecayMode | None = None,
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
        if decoupled_weight_decay and weight_decay_mode not in (None, "decoupled"):
            mode = f"weight_decay_mode={weight_decay_mode!r}"
            raise ValueError(f"{mode} with decoupled_weight_decay=True: write {mode} alone")
        super().__init__(
            params,
            kernel=kernel,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            weight_decay_mode=weight_decay_mode or ("decoupled" if decoupled_weight_decay else "l2"),
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

    def state_names(self, group: Group) -> tuple[str, ...]:
        return adam_state_names(group)

    def update_moments(self, g: Tensor, state: State, group: Group, step: Number) -> None:
        beta1, beta2 = group["betas"]
        state["exp_avg"].mul_(beta1).add_(g, alpha=1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)

    def direction(self, w: Tensor, g: Tensor, state: State, group: Group, step: Number) -> Tensor:
        m_hat_factor = 1 / (1 - group["betas"][0] ** step)
        return add_to_direction(self._rectified(state["exp_avg"], m_hat_factor, state, group, step), w, group)

    def metric(self, scale: Number, state: State, group: Group, step: Number) -> Tensor:
        return self._rectified(torch.ones_like(state["exp_avg_sq"]), scale, state, group, step)

    def _rectified(self, m: Tensor, factor: Number, state: State, group: Group, step: Number) -> Tensor:
        """factor r m / sqrt(v^), where r is defined, else factor m. As in torch, eps is added before v is bias-corrected."""
        is_defined, r = _rectification(group["betas"][1], step)
        if not isinstance(is_defined, Tensor) and not is_defined:
            return m * factor
        root = sqrt(1 - group["betas"][1] ** step)
        rectified = (m * (factor * r * root)).div_(state["exp_avg_sq"].sqrt().add_(group["eps"]))
        return torch.where(is_defined, rectified, m * factor) if isinstance(is_defined, Tensor) else rectified

    def coefficients(self, group: Group, step: int) -> Coefficients:
        c, (is_defined, r) = adam_coefficients(group, step), _rectification(group["betas"][1], step)
        if not is_defined:
            return replace(c, v_scale=0.0, eps=1.0)  # the denominator is 1
        return replace(c, v_scale=1.0, numerator=c.numerator * float(r) * math.sqrt(1 - group["betas"][1] ** step))


def _rectification(beta2: float, step: Number) -> tuple[bool | Tensor, Number]:
    """Whether r_t of algorithm 2 is defined, and r_t. As in torch, from rho_t > 5 on; the paper has 4."""
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * beta2**step / (1 - beta2**step)
    is_defined = rho > 5
    rho = choose(is_defined, rho, rho_inf)  # the root is real
    return is_defined, sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
