"""Muon: momentum, orthogonalized for each matrix (Jordan et al. 2024, kellerjordan.github.io/posts/muon; 2502.16982)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bellwether.optimizers.adam import AdamRule
from bellwether.optimizers.base import RuleOptimizer
from bellwether.optimizers.param_groups import shape_of
from bellwether.optimizers.rule import Group, Rule, State
from bellwether.optimizers.scalars import Number, add_scaled
from bellwether.optimizers.weight_decay import WeightDecayMode

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Muon(RuleOptimizer):
    r"""Momentum whose singular values are all brought near 1, for matrices; AdamW for the other parameters.

    For each matrix :math:`w` [out, in] with gradient :math:`g`::

        m = momentum m + (1 - momentum) g
        u = momentum m + (1 - momentum) g with nesterov, else m
        o = newton_schulz(u)                                   about U V^T, of the singular value decomposition of u
        w = (1 - lr weight_decay) w - lr scale o               scale = sqrt(max(1, out / in)), see adjust_lr_fn

    A convolution [out, in, height, width] is the matrix [out, in height width]. The matrix is whole also where an engine shards
    it: its slices travel to one rank, which computes o, and those of o travel back. Groups with ``muon=False``, which
    ``groups(model, muon=True)`` makes of embeddings, the output layer, normalization and biases, are updated by AdamW::

        optimizer = Muon(groups(model, muon=True), lr=0.02, adam_lr=3e-4)

    Args:
        params: matrices, or param groups. A group with ``muon=False`` is AdamW's, and may have ``betas``, ``adam_eps`` and
            ``lr`` of its own.
        lr: learning rate. At least 0. With ``adjust_lr_fn="match_rms_adamw"``, AdamW's suits.
        weight_decay: at least 0; multiplied by lr, for the groups of AdamW too.
        momentum: decay rate of the momentum, from 0 to 1.
        nesterov: look one step ahead.
        ns_coefficients: (a, b, c) of the Newton-Schulz iteration, x <- a x + b (x x^T) x + c (x x^T)^2 x.
        eps: smallest Frobenius norm that u is divided by.
        ns_steps: number of iterations, below 100.
        adjust_lr_fn: ``original`` or None: scale = sqrt(max(1, out / in)); ``match_rms_adamw``: 0.2 sqrt(max(out, in)).
        ns_dtype: in which the iteration computes, and in which slices travel: bf16 as torch, fp32 where exactness counts
            more than time.
        betas, adam_eps: of AdamW.
        adam_lr: learning rate of AdamW's groups that have none; None: ``lr``.
        weight_decay_mode: any but prox-metric.
        peak_lr, maximize, kernel, max_grad_norm, stochastic_rounding, kahan_sum, rounding_seed: as in `bellwether.optimizers.Lamb`;
            ``kernel`` is that of AdamW's groups.
        foreach, capturable, differentiable, fused: torch's flags; those that cannot be honoured are refused.

    Raises:
        ValueError: for values out of range, and for a parameter of fewer than two dimensions in a group without ``muon=False``.

    The arithmetic and the first nine arguments are those of `torch.optim.Muon`, which takes matrices alone. State:
    ``momentum_buffer`` for matrices, at least in fp32; ``exp_avg`` and ``exp_avg_sq`` for the others.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
    >>> optimizer = Muon([weight], lr=1.0, ns_steps=30, ns_coefficients=(1.5, -0.5, 0.0), ns_dtype="fp32")
    >>> weight.grad = torch.tensor([[0.0, 3.0], [0.5, 0.0]])
    >>> optimizer.step()
    >>> (-weight).round(decimals=4).abs().tolist()  # the singular values 3 and 0.5 have both become 1
    [[0.0, 1.0], [1.0, 0.0]]
    """

    needs_whole = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        ns_dtype: torch.dtype | str = "bf16",
        betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-8,
        adam_lr: float | None = None,
        weight_decay_mode: WeightDecayMode = "decoupled",
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
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            eps=eps,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
            ns_dtype=_name_of(ns_dtype),
            muon=True,
            betas=betas,
            adam_eps=adam_eps,
            adam_lr=adam_lr,
            weight_decay_mode=weight_decay_mode,
            trust_ratio=False,
            trust_bounds=None,
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

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if "use_muon" in param_group:  # of the original, and of DeepSpeed
            raise ValueError(
                f"param group with use_muon={param_group['use_muon']!r}: write muon={param_group['use_muon']!r}"
            )
        if "ns_dtype" in param_group:
            param_group["ns_dtype"] = _name_of(param_group["ns_dtype"])
        adam_lr = self.defaults["adam_lr"]
        if not param_group.get("muon", True) and adam_lr is not None and "lr" not in param_group:
            param_group["lr"] = adam_lr * param_group.pop("lr_scale", 1.0)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if reason := _unfit(group, len(self.param_groups) - 1):
            self.param_groups.pop()
            raise ValueError(reason)

    def of_group(self, group: Group) -> tuple[Rule, Group]:
        if group["muon"]:
            return self, group
        return _ADAM, {**group, "eps": group["adam_eps"], "amsgrad": False}

    def state_names(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["muon"] else _ADAM.state_names({})

    def update_moments(self, g: Tensor, state: State, group: Group, step: Number) -> None:
        m = state["momentum_buffer"]
        m.lerp_(g.to(m.dtype), 1 - group["momentum"])  # momentum m + (1 - momentum) g

    def direction(self, w: Tensor, g: Tensor, state: State, group: Group, step: Number) -> Tensor:
        m = state["momentum_buffer"]
        return g.to(m.dtype).lerp(m, group["momentum"]) if group["nesterov"] else m

    def whole_direction(self, direction: Tensor, group: Group) -> Tensor:
        if not direction.numel():
            return direction
        matrix = direction.reshape(direction.shape[0], -1)
        return newton_schulz(matrix, group["ns_coefficients"], group["ns_steps"], group["eps"]).view(direction.shape)

    def whole_dtype(self, group: Group) -> torch.dtype:
        return DTYPES[group["ns_dtype"]]

    def whole_cost(self, shape: Sequence[int]) -> float:
        return newton_schulz_cost(shape)

    def whole_scale(self, shape: Sequence[int], group: Group) -> float:
        rows, columns = shape[0], max(1, math.prod(shape[1:]))
        if group["adjust_lr_fn"] == "match_rms_adamw":
            return 0.2 * math.sqrt(max(rows, columns))
        return math.sqrt(max(1, rows / columns))

    def apply_update(self, w: Tensor, update: Tensor, state: State, group: Group, step: Number) -> None:
        if (
            group["weight_decay_mode"] == "decoupled"
        ):  # w - (lr weight_decay w + update): rounds once, torch's form twice
            add_scaled(update, w, self.rate(group) * group["weight_decay"])
            w.sub_(update)
        else:
            super().apply_update(w, update, state, group, step)


_ADAM = AdamRule()


def newton_schulz_cost(shape: Sequence[int]) -> float:
    """Multiplications of one iteration: x x^T, its square, and its product with x."""
    rows, columns = sorted((shape[0], math.prod(shape[1:])))
    return float(rows * rows * (2 * columns + rows))


def newton_schulz(matrix: Tensor, coefficients: Sequence[float], steps: int, eps: float) -> Tensor:
    """Approximately U V^T of a matrix U S V^T, in its dtype: x <- a x + b (x x^T) x + c (x x^T)^2 x, from x = matrix / norm.

    The default coefficients do not converge to singular values of 1, but bring them between about 0.7 and 1.2 in 5 steps.
    """
    a, b, c = coefficients
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=eps)  # no singular value above 1
    for _ in range(steps):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def _name_of(dtype: torch.dtype | str) -> str:
    """A dtype as it stands in param groups: text, which a config and a state dict can hold."""
    name = _NAMES.get(dtype, str(dtype)) if isinstance(dtype, torch.dtype) else dtype
    if name not in DTYPES:
        raise ValueError(f"ns_dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
    return name


def _unfit(group: Group, index: int) -> str:
    """The reason why a group cannot be trained."""
    if group["trust_ratio"]:
        return f"param group {index}: trust_ratio=True: Muon's update has its size from adjust_lr_fn; omit trust_ratio"
    names = group.get("param_names", [f"{index}.{i}" for i in range(len(group["params"]))])
    for name, parameter in zip(names, group["params"], strict=False):
        if group["muon"] and len(shape_of(parameter)) < 2:
            return (
                f"{name} of shape {tuple(shape_of(parameter))} is not a matrix: put it into a group with muon=False, which "
                "AdamW updates, or make the groups with groups(model, muon=True)"
            )
    return ""
