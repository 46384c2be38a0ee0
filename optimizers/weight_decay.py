"""The five modes of weight decay.

With the weights w, the direction u, the learning rate lr = eta x peak (eta is the schedule's multiplier, the peak is the
lr that the optimizer was constructed with, or the ``max_lr`` of torch's OneCycleLR) and Adam's denominator D::

    l2           u is the direction of g + weight_decay w
    decoupled    w - lr (u + weight_decay w)              torch's AdamW; with a trust ratio, that scales both (LAMB)
    independent  (1 - eta weight_decay) w - lr u          the AdamW of the paper (Loshchilov and Hutter 2017, 1711.05101)
    prox         (w - lr u) / (1 + eta weight_decay)      ProxAdam (Zhuang et al. 2022, 2202.00089)
    prox-metric  (w - lr u) / (1 + lr weight_decay / D)   the proximal step in Adam's metric (same paper)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

from torch import Tensor

from bellwether.optimizers.kernels.coefficients import Coefficients

WeightDecayMode = Literal["l2", "decoupled", "independent", "prox", "prox-metric"]
MODES: tuple[str, ...] = get_args(WeightDecayMode)

# These depend on the schedule's multiplier alone, so a group has to know its peak rate.
NEED_PEAK = ("independent", "prox")

Group = dict[str, Any]


def add_to_gradient(g: Tensor, w: Tensor, group: Group) -> Tensor:
    """l2: g + weight_decay w, in new memory."""
    strength = group["weight_decay"]
    return g.add(w, alpha=strength) if strength and group["weight_decay_mode"] == "l2" else g


def add_to_direction(u: Tensor, w: Tensor, group: Group) -> Tensor:
    """decoupled, with a trust ratio: u + weight_decay w, in place, so that the ratio scales the decay too."""
    return u.add_(w, alpha=group["weight_decay"]) if _is_coupled(group) else u


def shrink(w: Tensor, group: Group, rate: float) -> None:
    """decoupled: (1 - lr weight_decay) w; independent: (1 - eta weight_decay) w. In place, before the update."""
    factor = _shrink_factor(group, rate)
    if factor != 1:
        w.mul_(factor)


def prox(w: Tensor, group: Group) -> None:
    """prox: w / (1 + eta weight_decay), in place, after the update."""
    factor = _prox_factor(group)
    if factor != 1:
        w.mul_(factor)


def metric_scale(group: Group, rate: float) -> float:
    """prox-metric: lr weight_decay; 0 in the other modes."""
    return rate * group["weight_decay"] if group["weight_decay_mode"] == "prox-metric" else 0.0


def with_weight_decay(c: Coefficients, group: Group, step: int) -> Coefficients:
    """Coefficients of a rule, with the same decay for the compiled kernels."""
    strength, mode = group["weight_decay"], group["weight_decay_mode"]
    if not strength:
        return c
    if mode == "l2":
        return replace(c, l2=strength)
    if _is_coupled(group):
        return replace(c, coupled_decay=strength)
    if mode == "prox-metric":
        # 1 / D is what the direction multiplies m^ by: all of its numerator but the bias correction.
        correction = 1 - c.beta1**step if group.get("bias_correction", True) else 1.0
        return replace(c, metric=strength * c.numerator * correction)
    return replace(c, shrink=_shrink_factor(group, c.rate), prox=_prox_factor(group))


def _is_coupled(group: Group) -> bool:
    # Without a trust ratio the decay acts on the weights: torch's order of operations, which rounds as torch's.
    return bool(group["weight_decay"] and group["weight_decay_mode"] == "decoupled" and group["trust_ratio"])


def _shrink_factor(group: Group, rate: float) -> float:
    strength, mode = group["weight_decay"], group["weight_decay_mode"]
    if strength and mode == "decoupled" and not group["trust_ratio"]:
        return float(1 - rate * strength)
    return 1 - _multiplier(group) * strength if strength and mode == "independent" else 1.0


def _prox_factor(group: Group) -> float:
    strength = group["weight_decay"]
    return 1 / (1 + _multiplier(group) * strength) if strength and group["weight_decay_mode"] == "prox" else 1.0


def _multiplier(group: Group) -> float:
    """The schedule's multiplier eta. torch's OneCycleLR rises to its own peak, which it stores in the group."""
    peak = group["max_lr"] if "max_lr" in group else group["peak_lr"]
    return float(group["lr"]) / float(peak)
