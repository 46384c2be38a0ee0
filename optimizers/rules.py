"""The directions: from a param group and the number of the update to the coefficients of the arithmetic.

One function a rule. What the coefficients do to tensors is said in `bellwether.optimizers.kernels.reference`.
"""

from __future__ import annotations

import math
from dataclasses import replace

from bellwether.optimizers.kernels.tensor_list import Coefficients
from bellwether.optimizers.sharded import Group


def adam(group: Group, step: int) -> Coefficients:
    """m^ / (sqrt(v^) + eps), with both moments bias-corrected (Kingma and Ba 2014, 1412.6980, algorithm 1).

    With ``amsgrad``, v is the largest so far (Reddi et al. 2018, 1904.09237), corrected as in torch.
    """
    beta1, beta2 = group["betas"]
    corrected = group.get("bias_correction", True)
    return Coefficients(
        formula="amsgrad" if group.get("amsgrad") else "adam",
        rate=float(group["lr"]),
        grad=_sign(group),
        beta1=beta1,
        weight1=1 - beta1,
        beta2=beta2,
        numerator=1 / (1 - beta1**step) if corrected else 1.0,
        root=1 / math.sqrt(1 - beta2**step) if corrected else 1.0,
        eps=group["eps"],
    )


def radam(group: Group, step: int) -> Coefficients:
    """Adam's direction times the rectification r_t; m^ alone while r_t is not defined (Liu et al. 2019, algorithm 2).

    As in torch, the rectified form begins at rho_t > 5 (the paper has 4), and eps is added before v is corrected.
    """
    beta2 = group["betas"][1]
    c = adam(group, step)
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * beta2**step / (1 - beta2**step)
    if rho <= 5:
        return replace(c, root=0.0, eps=1.0)  # the denominator is 1
    rectification = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    return replace(c, root=1.0, numerator=c.numerator * rectification * math.sqrt(1 - beta2**step))


def momentum(group: Group, step: int) -> Coefficients:
    """m, or g + momentum m with Nesterov, or g without momentum (Sutskever et al. 2013, in torch's form)."""
    factor = group["momentum"]
    return Coefficients(
        formula="plain" if not factor else "nesterov" if group["nesterov"] else "momentum",
        rate=float(group["lr"]),
        grad=_sign(group),
        beta1=factor,
        # The first gradient counts in full, as in torch: an average would begin at 0 otherwise.
        weight1=1.0 if step == 1 else 1 - group.get("dampening", 0.0),
    )


def lars(group: Group, step: int) -> Coefficients:
    """Momentum of what trust ratio and learning rate have scaled (You et al. 2017, 1708.03888, algorithm 1)."""
    # The rate is inside the momentum: a step already taken is not rescaled when the rate changes.
    return replace(momentum(group, step), rate=1.0, scale=float(group["lr"]))


def _sign(group: Group) -> float:
    return -1.0 if group.get("maximize") else 1.0
