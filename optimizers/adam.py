"""Adam (Kingma and Ba 2014, arXiv 1412.6980), in torch's form."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bellwether.optimizers import rules
from bellwether.optimizers.decay import FORMS, Decay
from bellwether.optimizers.update import Composed


class Adam(Composed):
    r"""Adam, by default with a decay in the gradient (L2), most of which the second moment divides away again::

        g = g + weight_decay w
        m = beta1 m + (1 - beta1) g;         v = beta2 v + (1 - beta2) g^2
        w = w - lr m^ / (sqrt(v^) + eps)                      (m^, v^ bias-corrected)

    Args:
        params: parameters or param groups.
        lr: learning rate, the change of a weight in one step at most about. At least 0.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the denominator, in units of the gradient. At least 0.
        weight_decay: at least 0; its unit depends on the form.
        decay: the form of the decay, any of `bellwether.optimizers.decay`.
        amsgrad: divide by the largest second moment so far (Reddi et al. 2018, 1904.09237).
        trust_ratio: scale each parameter's update to the size of its weights, as LAMB does.
        trust_bounds: (lowest, highest) trust ratio.
        maximize: go up instead of down.
        kernel: ``auto``, ``reference`` (torch), ``cpu`` (C++) or ``triton`` (on GPUs).

    Raises:
        ValueError: for values out of range and for combinations that contradict themselves.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = Adam([weight], lr=0.1)
    >>> weight.grad = torch.tensor([0.3, -40.0])
    >>> optimizer.step()
    >>> weight.tolist()  # the first step is lr in each element, whatever the size of the gradient
    [0.8999999761581421, 2.0999999046325684]
    """

    rule = staticmethod(rules.adam)
    decays = FORMS

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        decay: Decay = "l2",
        trust_ratio: bool = False,
        trust_bounds: tuple[float, float] | None = None,
        maximize: bool = False,
        kernel: str = "auto",
    ) -> None:
        super().__init__(
            params,
            kernel=kernel,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            decay=decay,
            trust_ratio=trust_ratio,
            trust_bounds=trust_bounds,
            maximize=maximize,
        )
