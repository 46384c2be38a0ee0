"""LAMB: layer-wise adaptive large-batch optimization (You et al. 2019, arXiv 1904.00962, algorithm 2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, maximum

from bellwether.optimizers.adam import adam_coefficients, adam_state_names
from bellwether.optimizers.base import RuleOptimizer
from bellwether.optimizers.deprecation import renamed_keywords
from bellwether.optimizers.kernels.coefficients import Coefficients
from bellwether.optimizers.rule import Group, State
from bellwether.optimizers.scalars import Number, sqrt
from bellwether.optimizers.weight_decay import MODES, WeightDecayMode, add_to_direction


class Lamb(RuleOptimizer):
    r"""Adam's direction plus weight decay, scaled for each parameter to the norm of its weights.

    For each parameter :math:`w` with gradient :math:`g`::

        m = beta1 m + (1 - beta1) g;         v = beta2 v + (1 - beta2) g^2
        u = m^ / (sqrt(v^) + eps) + weight_decay w            (m^, v^ bias-corrected)
        w = w - lr ||w|| / ||u|| u                            (ratio 1 where a norm is 0)

    The norms are of the whole parameter, also where an engine shards it over ranks.

    Args:
        params: parameters, or param groups such as those of `bellwether.optimizers.groups`. A group with
            ``trust_ratio=False`` is not scaled: biases and normalization, which also get ``weight_decay=0``.
        lr: learning rate; with the trust ratio, the relative change of a weight in one step. At least 0.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the denominator, in units of the gradient. At least 0.
        weight_decay: at least 0; inside the scaled update, as in the paper.
        amsgrad: divide by the largest second moment so far.
        weight_decay_mode: ``decoupled`` is the paper's; ``l2`` adds the decay to the gradient; ``independent`` and
            ``prox`` apply it to the weights, scaled neither by the trust ratio nor by lr.
        bias_correction: False to use m and v uncorrected, as some published runs do.
        trust_bounds: (lowest, highest) trust ratio, (0.01, 0.3) in DeepSpeed's LAMB; None for no bounds.
        trust_ratio: False gives Adam.
        prenormalize: divide the gradients by their global norm first, also where it is below 1, as NVIDIA's article on
            "NVLAMB" describes; its published code clips instead: ``max_grad_norm=1.0``. The norm is DeepSpeed's where it has one; elsewhere it takes one more all-reduce.
        peak_lr: the highest learning rate of the schedule, for the modes ``independent`` and ``prox``; None: the
            scheduler's, or lr. A step with a higher lr is refused.
        maximize: ascend instead of descend.
        kernel: ``auto``, ``reference`` (torch), ``cpu`` (C++) or ``triton`` (on GPUs).
        grad_averaging: False to add the gradient to m with weight 1 instead of 1 - beta1, as apex's option does.
        always_adapt: False to leave groups without weight decay without a trust ratio, as apex and timm do by default;
            None or True: every group has one, unless it has ``trust_ratio=False``.
        max_grad_norm: clip the global norm of the gradients at this, for engines that do not; None: do not.
        stochastic_rounding, kahan_sum, rounding_seed: for 16-bit weights: `bellwether.optimizers.rounding`.
        foreach, capturable, differentiable, fused: torch's flags; those that cannot be honoured are refused.

    Raises:
        ValueError: for values out of range and for combinations that contradict each other.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.full((2, 2), 2.0))
    >>> optimizer = Lamb([weight], lr=0.1, weight_decay=0.0)
    >>> weight.grad = torch.ones(2, 2)
    >>> optimizer.step()
    >>> round(weight[0, 0].item(), 5)  # |u| = 1, ||w|| / ||u|| = 2: down by 0.1 x 2
    1.8
    """

    weight_decay_modes = MODES

    @renamed_keywords
    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        weight_decay_mode: WeightDecayMode = "decoupled",
        bias_correction: bool = True,
        trust_ratio: bool = True,
        trust_bounds: tuple[float, float] | None = None,
        prenormalize: bool = False,
        peak_lr: float | None = None,
        maximize: bool = False,
        kernel: str = "auto",
        grad_averaging: bool = True,
        always_adapt: bool | None = None,
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
            prenormalize=prenormalize,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            weight_decay_mode=weight_decay_mode,
            bias_correction=bias_correction,
            trust_ratio=trust_ratio,
            trust_bounds=trust_bounds,
            peak_lr=peak_lr,
            maximize=maximize,
            grad_averaging=grad_averaging,
            always_adapt=always_adapt,
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
        m, v = state["exp_avg"], state["exp_avg_sq"]
        m.mul_(beta1).add_(g, alpha=1 - beta1 if group.get("grad_averaging", True) else 1.0)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        if group["amsgrad"]:
            maximum(state["max_exp_avg_sq"], v, out=state["max_exp_avg_sq"])

    def direction(self, w: Tensor, g: Tensor, state: State, group: Group, step: Number) -> Tensor:
        m_hat = state["exp_avg"] * (1 / self._correction(0, group, step))
        u = m_hat.div_(self._denominator(state, group, step))
        return add_to_direction(u, w, group)  # u + weight_decay w

    def trust_ratio(self, weight_norm: Tensor, other_norm: Tensor, group: Group) -> Tensor:
        return weight_norm / other_norm  # then w = w - lr ratio u

    is_norm_ratio = True

    def metric(self, scale: Number, state: State, group: Group, step: Number) -> Tensor:
        return self._denominator(state, group, step).reciprocal_().mul_(scale)

    def _denominator(self, state: State, group: Group, step: Number) -> Tensor:
        """sqrt(v^) + eps."""
        v = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        root_of_v_hat = v.sqrt().mul_(1 / sqrt(self._correction(1, group, step)))
        return root_of_v_hat.add_(group["eps"])

    def _correction(self, moment: int, group: Group, step: Number) -> Number:
        """The divisor that makes a moment, which begins at 0, unbiased."""
        return 1 - group["betas"][moment] ** step if group["bias_correction"] else 1.0

    def coefficients(self, group: Group, step: int) -> Coefficients:
        c = adam_coefficients(group, step, bias_correction=group["bias_correction"])
        return c if group.get("grad_averaging", True) else replace(c, grad_weight=1.0)
