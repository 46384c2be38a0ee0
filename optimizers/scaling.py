"""Scales learning rate and warm-up with the batch size, from a batch size at which they are known."""

from __future__ import annotations

from typing import Literal

Rule = Literal["none", "linear", "sqrt"]

_POWER: dict[str, float] = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}


def scaled_lr(base_lr: float, batch: int, base_batch: int, rule: Rule) -> float:
    """Learning rate at a batch size: ``base_lr * (batch / base_batch) ** power``, power 0, 1 or 1/2.

    ``linear`` is Goyal et al. 2017 (1706.02677, section 2.1) for SGD; ``sqrt`` is You et al. 2019 (1904.00962, table 4
    and 5) for LAMB.

    >>> round(scaled_lr(5e-3 / 2**3, 32768, 512, "sqrt"), 6)
    0.005
    """
    return base_lr * (batch / base_batch) ** _POWER[rule]


def scaled_warmup(base_warmup: float, batch: int, base_batch: int) -> float:
    """Warm-up at a batch size, proportional to it, in samples, epochs or as a fraction of a run of fixed length.

    The linear-epoch warm-up of You et al. 2019: 1/320 of BERT's steps at 512, and 64 times as much at 32,768.

    >>> scaled_warmup(1 / 320, 32768, 512)
    0.2
    """
    return base_warmup * batch / base_batch
