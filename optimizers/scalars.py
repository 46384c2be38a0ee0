"""The numbers of a step: floats on the host, or with ``capturable`` tensors on the device, in the same arithmetic.

A CUDA graph replays the numbers that the host had at its capture, so that step count and rate have to be on the device. A rule that
computes with these functions can be captured.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

Number = float | Tensor  # float64 of shape (), if a tensor
StepCount = int | Tensor


def learning_rate(group: dict[str, Any]) -> Number:
    """The learning rate of a group; as a tensor it is read on the device."""
    lr = group["lr"]
    return lr.double() if group.get("capturable") and isinstance(lr, Tensor) else float(lr)


def place_lr(group: dict[str, Any]) -> None:
    """With ``capturable``: make the rate a tensor on the device, which schedules change in place.

    A tensor that is there already stays the user's own, as in torch: who gave it may change it.
    """
    if group.get("capturable") and group["params"]:
        dtype = None if isinstance(group["lr"], Tensor) else torch.float64
        group["lr"] = torch.as_tensor(group["lr"], dtype=dtype, device=group["params"][0].device)


def set_lr(group: dict[str, Any], lr: Number) -> None:
    """Change the rate of a group, in the memory that a graph has captured if it is a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def sqrt(value: Number) -> Number:
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)


def choose(condition: bool | Tensor, yes: Number, no: Number) -> Number:
    """``yes`` where the condition holds."""
    if not isinstance(condition, Tensor):
        return yes if condition else no
    chosen: Tensor = torch.where(condition, yes, no)
    return chosen


def add_scaled(total: Tensor, tensor: Tensor, factor: Number) -> None:
    """total + factor tensor, in place."""
    if isinstance(factor, Tensor):
        total.add_(tensor * factor)
    else:
        total.add_(tensor, alpha=factor)


def is_one(value: Number) -> bool:
    """Whether a factor can be left out. A tensor is not looked at, which would wait for the device."""
    return not isinstance(value, Tensor) and value == 1
