"""Invalid values and combinations are refused at construction, with the key, its value, and what to write instead."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bellwether.optimizers import SGD, Adam, AdamW, Lamb, Lars, RAdam
from tests.optimizers.configurations import (
    drive,
    parameters,
)

pytestmark = pytest.mark.usefixtures("one_thread")

nan, inf = math.nan, math.inf

# Class, options, and words of the message: the key, its value, and what to write instead.
ILLEGAL: list[tuple[type, dict[str, Any], tuple[str, ...]]] = [
    *[
        (kind, {key: value}, (f"{key}={value!r}", allowed))
        for kind in (Adam, AdamW, Lamb, Lars, RAdam, SGD)
        for key, allowed in (("lr", "a finite number, at least 0"), ("weight_decay", "a finite number, at least 0"))
        for value in (-1e-9, nan, inf, "1e-3", None)
    ],
    *[
        (kind, {"betas": value}, (f"betas={value!r}", "two numbers in [0, 1)"))
        for kind in (Adam, AdamW, Lamb, RAdam)
        for value in ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (nan, 0.9), (0.9, nan), (0.9,), (0.9, 0.9, 0.9), 0.9, ("a", "b"))
    ],
    *[
        (kind, {"eps": value}, (f"eps={value!r}", "a finite number, at least 0"))
        for kind in (Adam, AdamW, Lamb, RAdam, Lars)
        for value in (-1e-9, nan, inf)
    ],
    *[
        (kind, {"momentum": value}, (f"momentum={value!r}", "a number from 0 to 1"))
        for kind in (SGD, Lars)
        for value in (-0.1, 1.1, nan)
    ],
    *[
        (kind, {"trust_ratio": True, "trust_bounds": value}, (f"trust_bounds={value!r}", "lowest <= highest"))
        for kind in (Adam, AdamW, Lamb, RAdam, SGD)
        for value in ((2.0, 1.0), (-1.0, 1.0), (nan, 1.0), (0.0, nan), (0.0, 0.0), (1.0,), 3.0)
    ],
    *[
        (kind, {"trust_ratio": False, "trust_bounds": (0.0, 1.0)}, ("trust_bounds=(0.0, 1.0)", "write trust_ratio=True"))
        for kind in (Adam, AdamW, Lamb, RAdam, SGD)
    ],
    *[
        (kind, {"weight_decay_mode": "l3"}, ("weight_decay_mode='l3'", "write 'l2', 'decoupled', 'independent', 'prox' or 'prox-metric'"))
        for kind in (Adam, AdamW, Lamb, RAdam)
    ],
    *[
        (kind, {"weight_decay_mode": "prox-metric", "trust_ratio": True}, ("weight_decay_mode='prox-metric' with trust_ratio=True", "'prox'"))
        for kind in (Adam, AdamW, Lamb, RAdam)
    ],
    *[
        (kind, {"weight_decay_mode": decay, "lr": 0.0, "weight_decay": 0.1}, (f"weight_decay_mode={decay!r}", "lr=0.0 must be above 0"))
        for kind in (Adam, AdamW, Lamb, RAdam, SGD)
        for decay in ("independent", "prox")
    ],
    (SGD, {"weight_decay_mode": "prox-metric"}, ("weight_decay_mode='prox-metric'", "no metric", "write 'l2', 'decoupled', 'independent' or 'prox'")),
    *[
        (kind, {"max_grad_norm": value}, (f"max_grad_norm={value!r}", "a finite number above 0"))
        for kind in (Adam, AdamW, Lamb, Lars, RAdam, SGD)
        for value in (0, -1.0, nan, inf, "1")
    ],
    (SGD, {"dampening": 1.1}, ("dampening=1.1", "a number from 0 to 1")),
    (SGD, {"dampening": nan}, ("dampening=nan", "a number from 0 to 1")),
    (SGD, {"nesterov": True}, ("nesterov=True with momentum=0.0", "write momentum=0.9")),
    (SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ("nesterov=True with dampening=0.1", "write dampening=0")),
    (Lars, {"nesterov": True, "momentum": 0.0}, ("nesterov=True with momentum=0.0", "write momentum=0.9")),
    (Lars, {"trust_coefficient": 0.0}, ("trust_coefficient=0.0", "a finite number above 0")),
    (Lars, {"trust_coefficient": nan}, ("trust_coefficient=nan", "a finite number above 0")),
    (Lars, {"trust_bounds": (1.0, 0.5)}, ("trust_bounds=(1.0, 0.5)", "lowest <= highest")),
    (Lamb, {"lr": torch.ones(2)}, ("lr=tensor([1., 1.])", "a finite number, at least 0")),
]  # fmt: skip
OF_THE_CONSTRUCTOR: list[tuple[type, dict[str, Any], tuple[str, ...]]] = [
    (RAdam, {"decoupled_weight_decay": True, "weight_decay_mode": "prox"}, ("decoupled_weight_decay=True", "write weight_decay_mode='prox' alone")),
    *[
        (kind, {"differentiable": True}, ("differentiable=True", "write differentiable=False"))
        for kind in (Adam, AdamW, Lamb, Lars, RAdam, SGD)
    ],
    (Adam, {"fused": True, "foreach": True}, ("fused=True with foreach=True",)),
    (Adam, {"fused": True, "kernel": "reference"}, ("fused=True with kernel='reference'", "kernel='auto'")),
    (Adam, {"decoupled_weight_decay": True, "weight_decay_mode": "prox"}, ("decoupled_weight_decay=True", "write weight_decay_mode='prox' alone")),
    (Lamb, {"prenormalize": True, "max_grad_norm": 1.0}, ("prenormalize=True with max_grad_norm",)),
    *[
        (kind, {"kernel": "gpu"}, ("kernel='gpu'", "auto, reference, cpu"))
        for kind in (Adam, AdamW, Lamb, Lars, RAdam, SGD)
    ],
]  # fmt: skip
OF_A_GROUP: list[tuple[type, dict[str, Any], tuple[str, ...]]] = [
    *[
        (Lars, {"weight_decay_mode": decay}, (f"weight_decay_mode={decay!r}", "write 'l2'"))
        for decay in ("decoupled", "prox", "prox-metric")
    ],
    *[
        (
            RAdam,
            {"decoupled_weight_decay": True, **decay},
            ("decoupled_weight_decay=True", "write weight_decay_mode='decoupled'"),
        )
        for decay in ({}, {"weight_decay_mode": "prox"})
    ],
    (AdamW, {"weight_decay_mode": "prox", "peak_lr": 0.0}, ("weight_decay_mode='prox'", "peak_lr=0.0 must be above 0")),
    (AdamW, {"weight_decay_mode": "prox", "peak_lr": nan}, ("peak_lr=nan", "a finite number, at least 0")),
]


def named(case: Any) -> str | None:
    if isinstance(case, type):
        return case.__name__
    return "-".join(f"{k}={v}" for k, v in case.items()) if isinstance(case, dict) else "words"


def refused(make: Callable[[], Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are checked one by one
        make()
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("kind, options, words", ILLEGAL + OF_THE_CONSTRUCTOR, ids=named)
def test_invalid_options_at_construction(kind: type, options: dict[str, Any], words: tuple[str, ...]) -> None:
    refused(lambda: kind(parameters(), **options), words)


@pytest.mark.parametrize("kind, options, words", ILLEGAL + OF_A_GROUP, ids=named)
def test_invalid_options_in_a_group(kind: type, options: dict[str, Any], words: tuple[str, ...]) -> None:
    refused(lambda: kind([{"params": parameters(), **options}]), words)
    optimizer = kind(parameters())
    refused(lambda: optimizer.add_param_group({"params": parameters(), **options}), words)
    assert len(optimizer.param_groups) == 1


def test_group_without_trust_ratio_may_inherit_bounds() -> None:
    params = parameters()
    groups = [{"params": params[:2]}, {"params": params[2:], "trust_ratio": False}]
    optimizer = Lamb(groups, trust_bounds=(0.01, 0.3))
    drive(optimizer, 1)
    assert set(optimizer.trust_ratios()) == {"0.0", "0.1"}


def test_lars_has_no_weight_decay_mode() -> None:
    with pytest.raises(TypeError, match="weight_decay_mode"):
        Lars(parameters(), weight_decay_mode="prox")  # type: ignore[call-arg]
