"""The coefficients of the compiled kernels: one update of a parameter, by any rule, as fifteen scalars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Formula = Literal["adam", "amsgrad", "momentum", "nesterov", "plain"]
FORMULAS: tuple[Formula, ...] = get_args(Formula)


class Scalars(NamedTuple):
    """The arguments of a compiled kernel, in this order.

    The C++ struct is generated from these names (`bellwether.optimizers.kernels.cpu`), and the Triton kernel is called by them. With
    weights w, gradient g, first and second moment m and v::

        g = scale (grad g + l2 w)
        m = beta1 m + grad_weight g                  with momentum
        v = beta2 v + (1 - beta2) g^2                adam and amsgrad; amsgrad takes the largest v so far from here on
        D = v_scale sqrt(v) + eps
        u = numerator m / D                          or numerator times m (momentum), g + beta1 m (nesterov), g (plain)
        u = u + coupled_decay w
        w = prox (shrink w - rate u) / (1 + metric / D)
    """

    rate: float
    grad: float
    l2: float
    scale: float
    beta1: float
    grad_weight: float
    beta2: float
    one_minus_beta2: float
    numerator: float
    v_scale: float
    eps: float
    coupled_decay: float
    shrink: float
    prox: float
    metric: float


@dataclass(frozen=True)
class Coefficients:
    """One update in numbers, in double precision. Each rule, weight decay mode and option is a choice of these."""

    formula: Formula
    rate: float  # learning rate; with a trust ratio, each segment has its own instead
    grad: float = 1.0  # factor of the gradient: -1 to maximize, 1 / norm to normalize
    l2: float = 0.0  # weight decay that is added to the gradient
    scale: float = 1.0  # factor of gradient plus decay; with LARS's trust ratio, each segment has its own instead
    beta1: float = 0.0  # momentum
    grad_weight: float = 1.0  # weight of the gradient in the momentum
    beta2: float = 0.0
    numerator: float = 1.0  # factor of the first moment in the direction
    v_scale: float = 1.0  # factor of the square root of the second moment
    eps: float = 0.0
    coupled_decay: float = 0.0  # weight decay that is part of the direction, so that a trust ratio scales it
    shrink: float = 1.0  # factor of the weights before the update
    prox: float = 1.0  # factor of the weights after the update
    metric: float = 0.0  # weight decay of the proximal step in Adam's metric, times `rate` for the kernels

    def scalars(self) -> Scalars:
        derived = {"one_minus_beta2": 1 - self.beta2, "metric": self.rate * self.metric}
        # All float: an option given as the int 0 would make Triton compile a second kernel.
        return Scalars(*(float(derived[key] if key in derived else getattr(self, key)) for key in Scalars._fields))
