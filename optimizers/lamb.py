"""LAMB: layer-wise adaptive large-batch optimisation (You et al. 2019, arXiv 1904.00962, algorithm 2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bellwether.optimizers import rules
from bellwether.optimizers.decay import FORMS, Decay
from bellwether.optimizers.update import Composed


class Lamb(Composed):
    r"""Adam's direction plus decay, scaled in each parameter to the size of its weights.

    For each parameter :math:`w` with gradient :math:`g`::

        m = beta1 m + (1 - beta1) g;         v = beta2 v + (1 - beta2) g^2
        u = m^ / (sqrt(v^) + eps) + weight_decay w            (m^, v^ bias-corrected)
        w = w - lr ||w|| / ||u|| u                            (ratio 1 where a norm is 0)

    The norms are of the whole parameter, also where an engine has cut it over ranks.

    Args:
        params: parameters, or param groups such as `bellwether.optimizers.groups` makes. A group with ``trust_ratio=False`` is
            not scaled: biases and normalisation, which also get ``weight_decay=0``.
        lr: learning rate; with the ratio, the relative change of a weight in one step. At least 0.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the denominator, in units of the gradient. At least 0.
        weight_decay: at least 0; inside the scaled update, as in the paper.
        amsgrad: divide by the largest second moment so far.
        decay: ``decoupled`` is the paper's; ``l2`` adds it to the gradient; ``independent`` and ``prox`` take it out
            of the ratio, and of lr.
        bias_correction: False for m and v as they are, as some published runs have it.
        trust_bounds: (lowest, highest) trust ratio, as DeepSpeed's LAMB has it (0.01, 0.3); None for the identity.
        trust_ratio: False leaves Adam.
        prenormalize: divide the gradients by the norm of all of them first, as in NVIDIA's LAMB ("NVLAMB"), so that
            only their direction counts. That norm is DeepSpeed's where it has one; elsewhere it takes an all-reduce.
        maximize: go up instead of down.
        kernel: ``auto``, ``reference`` (torch), ``cpu`` (C++) or ``triton`` (on GPUs).

    Raises:
        ValueError: for values out of range and for combinations that contradict themselves.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.full((2, 2), 2.0))
    >>> optimizer = Lamb([weight], lr=0.1, weight_decay=0.0)
    >>> weight.grad = torch.ones(2, 2)
    >>> optimizer.step()
    >>> round(weight[0, 0].item(), 5)  # |u| = 1, ||w|| / ||u|| = 2: down by 0.1 x 2
    1.8
    """

    rule = staticmethod(rules.adam)
    decays = FORMS

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        decay: Decay = "decoupled",
        bias_correction: bool = True,
        trust_ratio: bool = True,
        trust_bounds: tuple[float, float] | None = None,
        prenormalize: bool = False,
        maximize: bool = False,
        kernel: str = "auto",
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
            decay=decay,
            bias_correction=bias_correction,
            trust_ratio=trust_ratio,
            trust_bounds=trust_bounds,
            maximize=maximize,
        )
