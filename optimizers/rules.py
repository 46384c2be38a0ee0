"""The directions: plain tensor arithmetic, one function a rule. This is the specification.

Each takes tensors of one shape [n] (or any shape, all alike), moves the moments in place and returns a new tensor:
the direction in which the weights go down, before decay, trust ratio and learning rate.
"""

from __future__ import annotations

import math

from torch import Tensor


def adam(
    grad: Tensor,  # [n]
    exp_avg: Tensor,  # [n], moved in place
    exp_avg_sq: Tensor,  # [n], moved in place
    step: int,  # 1 for the first update
    betas: tuple[float, float],
    eps: float,
) -> Tensor:  # [n]
    """m^ / (sqrt(v^) + eps), with both moments bias-corrected (Kingma and Ba 2014, algorithm 1)."""
    beta1, beta2 = betas
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = exp_avg_sq.sqrt().div_(math.sqrt(1 - beta2**step)).add_(eps)
    return denominator.reciprocal_().mul_(exp_avg).div_(1 - beta1**step)


def radam(
    grad: Tensor,  # [n]
    exp_avg: Tensor,  # [n], moved in place
    exp_avg_sq: Tensor,  # [n], moved in place
    step: int,  # 1 for the first update
    betas: tuple[float, float],
    eps: float,
) -> Tensor:  # [n]
    """Adam's direction times the rectification r_t; m^ alone while r_t is not defined (Liu et al. 2019, algorithm 2).

    As in torch, the rectified form begins at rho_t > 5 (the paper has 4), and eps is added before v is corrected.
    """
    beta1, beta2 = betas
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    corrected = exp_avg / (1 - beta1**step)
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * beta2**step / (1 - beta2**step)
    if rho <= 5:
        return corrected
    rectification = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    return corrected.div_(exp_avg_sq.sqrt().add_(eps)).mul_(rectification * math.sqrt(1 - beta2**step))
