"""The five forms of weight decay, as changes to the coefficients of an update.

With the weights w, the direction u, the learning rate lr = eta x peak (eta is the schedule's multiplier, the peak is the
lr that the optimizer was made with, or the ``max_lr`` of torch's OneCycleLR) and Adam's denominator D::

    l2           u is the direction of g + weight_decay w
    decoupled    w - lr (u + weight_decay w)              torch's AdamW; with a trust ratio, that scales both (LAMB)
    independent  (1 - eta weight_decay) w - lr u          the AdamW of the paper (Loshchilov and Hutter 2017, 1711.05101)
    prox         (w - lr u) / (1 + eta weight_decay)      ProxAdam (Zhuang et al. 2022, 2202.00089)
    prox-metric  (w - lr u) / (1 + lr weight_decay / D)   the proximal step in Adam's metric (the same article)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

from bellwether.optimizers.kernels.tensor_list import Coefficients

Decay = Literal["l2", "decoupled", "independent", "prox", "prox-metric"]
FORMS: tuple[str, ...] = get_args(Decay)

# These count the schedule's multiplier alone, so a group needs to know its peak rate.
NEED_PEAK = ("independent", "prox")


def with_decay(c: Coefficients, group: dict[str, Any], step: int) -> Coefficients:
    """Coefficients of a rule, with the group's decay in its form."""
    strength = group["weight_decay"]
    if not strength:
        return c
    form = group["decay"]
    if form == "l2":
        return replace(c, l2=strength)
    if form == "decoupled":
        # On the weights, not in the direction, where no trust ratio asks for it: torch's order, which rounds as torch's.
        return replace(c, inside=strength) if group["trust_ratio"] else replace(c, shrink=1 - c.rate * strength)
    if form == "prox-metric":
        # 1 / D is what the direction multiplies m^ with: all of its numerator but the bias correction.
        corrected = 1 - c.beta1**step if group.get("bias_correction", True) else 1.0
        return replace(c, metric=strength * c.numerator * corrected)
    # torch's OneCycleLR climbs to another peak than the lr that the optimizer was made with, and says so.
    eta = float(group["lr"]) / float(group.get("max_lr", group["peak_lr"]))
    if form == "independent":
        return replace(c, shrink=1 - eta * strength)
    return replace(c, prox=1 / (1 + eta * strength))
