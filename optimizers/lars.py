"""LARS: layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888, algorithm 1), in MLPerf's form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from bellwether.optimizers.base import RuleOptimizer
from bellwether.optimizers.kernels.coefficients import Coefficients
from bellwether.optimizers.rule import Group, State
from bellwether.optimizers.scalars import Number
from bellwether.optimizers.sgd import momentum_coefficients, momentum_state_names


class Lars(RuleOptimizer):
    r"""SGD with momentum, its gradients scaled for each parameter to the norm of its weights.

    For each parameter :math:`w` with gradient :math:`g`::

        ratio = trust_coefficient ||w|| / (||g|| + weight_decay ||w|| + eps)     (1 where a norm is 0)
        m = momentum m + lr ratio (g + weight_decay w)
        w = w - m                                             or w - (lr ratio (...) + momentum m) with Nesterov

    The learning rate is inside the momentum, as in the paper and in MLPerf's reference: a change of the rate does not
    rescale the steps already in the momentum.

    Args:
        params: parameters, or param groups such as those of `bellwether.optimizers.groups`. A group with
            ``trust_ratio=False`` is plain SGD with momentum: biases and normalization, which also get ``weight_decay=0``.
        lr: learning rate; large, because the trust ratio is small (MLPerf's ResNet-50: 10 to 30). At least 0.
        momentum: from 0 to 1.
        weight_decay: added to the gradient (L2). At least 0.
        nesterov: use Nesterov momentum.
        trust_coefficient: relative change of a weight in one step at lr 1.
        eps: added to the denominator of the ratio, in units of the gradient. At least 0.
        trust_bounds: (lowest, highest) trust ratio; None for no bounds.
        maximize: ascend instead of descend.
        kernel: ``auto``, ``reference`` (torch), ``cpu`` (C++) or ``triton`` (on GPUs).
        max_grad_norm: clip the global norm of the gradients at this, for engines that do not; None: do not.
        stochastic_rounding, kahan_sum, rounding_seed: for 16-bit weights: `bellwether.optimizers.rounding`.
        foreach, capturable, differentiable, fused: torch's flags; those that cannot be honoured are refused.

    Raises:
        ValueError: for values out of range and for combinations that contradict each other.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.full((2, 2), 2.0))
    >>> optimizer = Lars([weight], lr=10.0, weight_decay=0.0)
    >>> weight.grad = torch.full((2, 2), 500.0)
    >>> optimizer.step()
    >>> round(weight[0, 0].item(), 5)  # ratio 0.001 x 4 / 1000: down by 10 x 4e-6 x 500
    1.98
    """

    weight_decay_modes = ("l2",)
    scales_gradient = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        nesterov: bool = False,
        *,
        trust_coefficient: float = 1e-3,
        eps: float = 1e-8,
        trust_bounds: tuple[float, float] | None = None,
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
            weight_decay=weight_decay,
            weight_decay_mode="l2",
            nesterov=nesterov,
            trust_coefficient=trust_coefficient,
            eps=eps,
            trust_ratio=True,
            trust_bounds=trust_bounds,
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

    def trust_ratio(self, weight_norm: Tensor, other_norm: Tensor, group: Group) -> Tensor:
        denominator = other_norm + group["weight_decay"] * weight_norm + group["eps"]
        return group["trust_coefficient"] * weight_norm / denominator

    def gradient(self, w: Tensor, g: Tensor, rate: Number, group: Group) -> Tensor:
        return super().gradient(w, g, rate, group) * rate  # lr ratio (g + weight_decay w)

    def update_moments(self, g: Tensor, state: State, group: Group, step: Number) -> None:
        if group["momentum"]:
            state["momentum_buffer"].mul_(group["momentum"]).add_(g)

    def direction(self, w: Tensor, g: Tensor, state: State, group: Group, step: Number) -> Tensor:
        if not group["momentum"]:
            return g
        m = state["momentum_buffer"]
        return g.add(m, alpha=group["momentum"]) if group["nesterov"] else m

    def rate(self, group: Group) -> Number:
        return 1.0  # lr is in the gradient

    def coefficients(self, group: Group, step: int) -> Coefficients:
        return replace(momentum_coefficients(group, step), rate=1.0, scale=float(group["lr"]))
