"""SGD with momentum (Sutskever et al. 2013), in torch's form: the baseline."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bellwether.optimizers.base import RuleOptimizer
from bellwether.optimizers.deprecation import renamed_keywords
from bellwether.optimizers.kernels.coefficients import Coefficients
from bellwether.optimizers.rule import Group, State
from bellwether.optimizers.scalars import Number, add_scaled, choose
from bellwether.optimizers.weight_decay import WeightDecayMode, add_to_direction


class SGD(RuleOptimizer):
    r"""Stochastic gradient descent, with optional momentum::

        g = g + weight_decay w
        m = momentum m + (1 - dampening) g                    (m = g in the first step)
        w = w - lr m                                          or w - lr (g + momentum m) with Nesterov

    Args:
        params: parameters or param groups.
        lr: learning rate. At least 0.
        momentum: from 0 to 1.
        dampening: in [0, 1]; 0 with Nesterov.
        weight_decay: at least 0.
        nesterov: use Nesterov momentum.
        weight_decay_mode: ``l2``, ``decoupled`` (SGDW), ``independent`` or ``prox``: `bellwether.optimizers.weight_decay`.
        trust_ratio, trust_bounds, peak_lr, maximize, kernel: as in `bellwether.optimizers.Adam`. The ratio scales the momentum;
            `bellwether.optimizers.Lars` scales the gradient.
        max_grad_norm: clip the global norm of the gradients at this, for engines that do not; None: do not.
        stochastic_rounding, kahan_sum, rounding_seed: for 16-bit weights: `bellwether.optimizers.rounding`.
        foreach, capturable, differentiable, fused: torch's flags; those that cannot be honoured are refused.

    Raises:
        ValueError: for values out of range and for combinations that contradict each other.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = SGD([weight], lr=0.1, momentum=0.5)
    >>> for _ in range(2):
    ...     weight.grad = torch.tensor([2.0])
    ...     optimizer.step()
    >>> round(weight.item(), 6)  # 1 - 0.1 x 2 - 0.1 x 3
    0.5
    """

    @renamed_keywords
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        weight_decay_mode: WeightDecayMode = "l2",
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
            kernel=kernel,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            weight_decay_mode=weight_decay_mode,
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
        return momentum_state_names(group)

    def update_moments(self, g: Tensor, state: State, group: Group, step: Number) -> None:
        if group["momentum"]:
            # The first gradient counts in full, as in torch: m would be biased towards 0 otherwise.
            grad_weight = choose(step == 1, 1.0, 1 - group["dampening"])
            add_scaled(state["momentum_buffer"].mul_(group["momentum"]), g, grad_weight)

    def direction(self, w: Tensor, g: Tensor, state: State, group: Group, step: Number) -> Tensor:
        if not group["momentum"]:
            u = g.clone()
        elif group["nesterov"]:
            u = g.add(state["momentum_buffer"], alpha=group["momentum"])
        else:
            u = state["momentum_buffer"].clone()
        return add_to_direction(u, w, group)

    def coefficients(self, group: Group, step: int) -> Coefficients:
        return momentum_coefficients(group, step)


def momentum_state_names(group: Group) -> tuple[str, ...]:
    """The state of SGD and LARS."""
    return ("momentum_buffer",) if group["momentum"] else ()


def momentum_coefficients(group: Group, step: int) -> Coefficients:
    """SGD with momentum (Sutskever et al. 2013, in torch's form) in the numbers of the compiled kernels."""
    momentum = group["momentum"]
    return Coefficients(
        formula="plain" if not momentum else "nesterov" if group["nesterov"] else "momentum",
        rate=float(group["lr"]),
        beta1=momentum,
        grad_weight=1.0 if step == 1 else 1 - group.get("dampening", 0.0),
    )
