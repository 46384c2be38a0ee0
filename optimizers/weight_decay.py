"""The five modes of weight decay.

With the weights w, the direction u, the learning rate lr = eta x peak (eta is the schedule's multiplier, for the peak see
`peak_lr`) and Adam's denominator D::

    l2           u is the direction of g + weight_decay w
    decoupled    w - lr (u + weight_decay w)              torch's AdamW; with a trust ratio, that scales both (LAMB)
    independent  (1 - eta weight_decay) w - lr u          the AdamW of the paper (Loshchilov and Hutter 2017, 1711.05101)
    prox         (w - lr u) / (1 + eta weight_decay)      ProxAdam (Zhuang et al. 2022, 2202.00089)
    prox-metric  (w - lr u) / (1 + lr weight_decay / D)   the proximal step in Adam's metric (same paper)
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Literal, get_args

from torch import Tensor

from bellwether.optimizers.kernels.coefficients import Coefficients
from bellwether.optimizers.scalars import Number, is_one, learning_rate

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


def shrink(w: Tensor, group: Group, rate: Number) -> None:
    """decoupled: (1 - lr weight_decay) w; independent: (1 - eta weight_decay) w. In place, before the update."""
    factor = _shrink_factor(group, rate)
    if not is_one(factor):
        w.mul_(factor)


def prox(w: Tensor, group: Group) -> None:
    """prox: w / (1 + eta weight_decay), in place, after the update."""
    factor = _prox_factor(group)
    if not is_one(factor):
        w.mul_(factor)


def has_metric(group: Group) -> bool:
    """Whether weights are divided by 1 + lr weight_decay / D."""
    return bool(group["weight_decay"] and group["weight_decay_mode"] == "prox-metric")


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
    return replace(c, shrink=float(_shrink_factor(group, c.rate)), prox=float(_prox_factor(group)))


def _is_coupled(group: Group) -> bool:
    # Without a trust ratio the decay acts on the weights: torch's order of operations, which rounds as torch's.
    return bool(group["weight_decay"] and group["weight_decay_mode"] == "decoupled" and group["trust_ratio"])


def _shrink_factor(group: Group, rate: Number) -> Number:
    strength, mode = group["weight_decay"], group["weight_decay_mode"]
    if strength and mode == "decoupled" and not group["trust_ratio"]:
        return 1 - rate * strength
    return 1 - _multiplier(group) * strength if strength and mode == "independent" else 1.0


def _prox_factor(group: Group) -> Number:
    strength = group["weight_decay"]
    return 1 / (1 + _multiplier(group) * strength) if strength and group["weight_decay_mode"] == "prox" else 1.0


def peak_lr(group: Group) -> float:
    """The highest learning rate of the schedule, which eta refers to.

    In this order: the ``peak_lr`` that was given, the ``max_lr`` that torch's OneCycleLR stores in the group, the
    ``initial_lr`` that a scheduler of torch or of this package stores there, the lr that the group was made with.
    """
    given = group.get("peak_lr")
    if given is not None and given != group.get("inferred_peak_lr"):
        return float(given)
    peak: Any = group["max_lr"] if "max_lr" in group else group.get("initial_lr", given)
    return float(peak)


def infer_peak_lr(group: Group) -> None:
    """Assume that a group without ``peak_lr`` has been given the peak as its lr."""
    if group["weight_decay_mode"] in NEED_PEAK and group.get("peak_lr") is None:
        lr: Any = group.get("initial_lr", group["lr"])
        group["peak_lr"] = group["inferred_peak_lr"] = float(lr)


def check_peak_lr(group: Group, index: int) -> None:
    """Refuse an lr above the peak: independent and prox decay by lr / peak_lr, which would be above 1.

    Raises:
        ValueError: with the group, lr, peak_lr, and what to write.
    """
    if group["weight_decay_mode"] not in NEED_PEAK or not group["weight_decay"]:
        return
    if group.get("peak_lr") is None and "max_lr" not in group:
        raise ValueError(
            f"param group {index}: weight_decay_mode={group['weight_decay_mode']!r} is relative to the peak learning rate; "
            "set peak_lr in the group to the highest lr of the schedule"
        )
    lr, peak = float(group["lr"]), peak_lr(group)
    if lr > peak * (1 + 1e-6):  # a schedule's rounding
        raise ValueError(
            f"param group {index}: lr={lr:g} is above the peak learning rate {peak:g} that weight_decay_mode="
            f"{group['weight_decay_mode']!r} is relative to: the weights would decay by {lr / peak:.3g} x weight_decay in this "
            f"step. Give the schedule's highest lr to the optimizer or to the group: peak_lr={lr:g}, or more"
        )
    is_known = "initial_lr" in group or "max_lr" in group or group["peak_lr"] != group.get("inferred_peak_lr")
    if 0 < lr < peak and not is_known:  # torch's checkpoints take a step at 0
        warnings.warn(
            f"weight_decay_mode={group['weight_decay_mode']!r} takes the lr that the optimizer was made with, {peak:g}, as the "
            f"peak learning rate: at lr={lr:g} the weights decay by {lr / peak:.3g} x weight_decay. If the schedule's peak is "
            "another, give it: peak_lr=...",
            stacklevel=2,
        )


def _multiplier(group: Group) -> Number:
    """The schedule's multiplier eta."""
    return learning_rate(group) / peak_lr(group)
