"""Every optimizer of the package in every configuration that is tested, and helpers that run them."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from bellwether.optimizers import (
    SGD,
    SOAP,
    Adam,
    AdamW,
    AdamWScheduleFree,
    Lamb,
    Lars,
    Lookahead,
    Muon,
    RAdam,
    Swats,
    WeightAverage,
    registry,
)
from tests.optimizers.family import is_matrix

Factory = Callable[..., Any]


def of(kind: type, **options: Any) -> Factory:
    return lambda params, **others: kind(params, **{**options, **others})


def plain(kind: type, **options: Any) -> Factory:
    """Of a rule without a compiled kernel."""
    make = of(kind, **options)
    return lambda params, kernel="auto", **others: make(params, kernel="auto" if kernel == "cpu" else kernel, **others)


def around(wrap: Callable[[Any], Any], kind: type, **options: Any) -> Factory:
    return lambda params, **others: wrap(kind(params, **{**options, **others}))


def muon(**options: Any) -> Factory:
    def make(params: Any, **others: Any) -> Muon:
        if isinstance(params, Iterator):
            params = list(params)
        if (
            isinstance(params, list)
            and params
            and all(isinstance(p, Tensor | tuple) or _has_tensors(p) for p in params)
        ):
            groups = params if isinstance(params[0], dict) else [{"params": params}]
            params = [
                {**group, "params": list(chosen), "muon": muon}
                for group in groups
                for muon, chosen in itertools.groupby(group["params"], is_matrix)  # in their order
            ]
        return Muon(params, **{**options, **others})

    return make


def _has_tensors(group: Any) -> bool:
    return isinstance(group, dict) and isinstance(group.get("params"), list)


def group_of(name: str, params: Sequence[Tensor], **options: Any) -> dict[str, Any]:
    """A param group that the optimizer accepts: one with vectors is AdamW's in Muon."""
    for_adam = name.startswith("muon") and not all(map(is_matrix, params))
    return {"params": params, **({"muon": False} if for_adam else {}), **options}


# Learning rates suit Rosenbrock's function.
OPTIMIZERS: dict[str, Factory] = {
    "adam": of(Adam, lr=0.1),
    "adam-l2-amsgrad": of(Adam, lr=0.1, weight_decay=1e-4, amsgrad=True),
    "adam-trust": of(Adam, lr=0.01, trust_ratio=True, trust_bounds=(0.1, 10.0)),
    "adamw": of(AdamW, lr=0.1, weight_decay=1e-3),
    "adamw-amsgrad": of(AdamW, lr=0.1, weight_decay=1e-3, amsgrad=True),
    "adamw-independent": of(AdamW, lr=0.1, weight_decay=1e-5, weight_decay_mode="independent"),
    "adamw-prox": of(AdamW, lr=0.1, weight_decay=1e-5, weight_decay_mode="prox"),
    "adamw-prox-metric": of(AdamW, lr=0.1, weight_decay=1e-3, weight_decay_mode="prox-metric"),
    "lamb": of(Lamb, lr=0.005, weight_decay=1e-3),
    "lamb-bounds": of(Lamb, lr=0.02, weight_decay=1e-3, trust_bounds=(0.01, 2.0), bias_correction=False),
    "lamb-amsgrad-prox": of(Lamb, lr=0.005, weight_decay=1e-5, amsgrad=True, weight_decay_mode="prox"),
    "nvlamb": of(Lamb, lr=0.005, weight_decay=1e-3, prenormalize=True),
    "lars": of(Lars, lr=0.1, trust_coefficient=0.02, weight_decay=1e-4),
    "lars-nesterov": of(Lars, lr=0.1, trust_coefficient=0.02, weight_decay=1e-4, nesterov=True),
    "lars-plain": of(Lars, lr=0.7, trust_coefficient=0.02, momentum=0.0, trust_bounds=(0.0, 0.02)),
    "radam": of(RAdam, lr=0.004, weight_decay=1e-4),
    "radam-decoupled": of(RAdam, lr=0.004, weight_decay=1e-3, decoupled_weight_decay=True),
    "sgd": of(SGD, lr=2e-3),
    "sgd-momentum": of(SGD, lr=1e-3, momentum=0.9, dampening=0.1, weight_decay=1e-4),
    "sgd-nesterov-decoupled": of(
        SGD, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-3, weight_decay_mode="decoupled"
    ),
    "sgd-trust": of(SGD, lr=0.01, momentum=0.5, trust_ratio=True, weight_decay=1e-4),
    "muon": muon(lr=0.05, weight_decay=1e-3),
    "muon-fp32": muon(lr=0.1, ns_dtype="fp32", adjust_lr_fn="match_rms_adamw", nesterov=False, weight_decay=1e-3),
    "schedule-free-adamw": plain(AdamWScheduleFree, lr=0.1, weight_decay=1e-3, warmup_steps=3),
    "soap": plain(SOAP, lr=0.1, weight_decay=1e-3, precondition_frequency=2),
    "lookahead-lamb": around(lambda base: Lookahead(base, k=2), Lamb, lr=0.01, weight_decay=1e-3),
    "swats-adamw": around(Swats, AdamW, lr=0.1, weight_decay=1e-3),
    "ema-adamw": around(lambda base: WeightAverage(base, "ema"), AdamW, lr=0.1, weight_decay=1e-3),
    "swa-lookahead-sgd": around(lambda base: WeightAverage(Lookahead(base, k=2)), SGD, lr=1e-3, momentum=0.9),
}


def registered(entry: registry.Entry) -> Factory:
    def make(params: Any, kernel: str = "auto", **options: Any) -> Any:
        # It may have no compiled kernel.
        return entry.make(params, kernel="auto" if kernel == "cpu" else kernel, **{**entry.defaults, **options})

    return make


for _name, _entry in registry.OPTIMIZERS.items():  # a new optimizer is tested without a line here
    if not any(name == _name or name.startswith(f"{_name}-") for name in OPTIMIZERS):
        OPTIMIZERS[_name] = registered(_entry)
JOINT = ("nvlamb", "swats-adamw")  # an update depends on all parameters, so a group is not a separate optimizer

every = pytest.mark.parametrize("name", OPTIMIZERS)


SHAPES = [(5, 7), (), (1,), (3, 2, 4)]


def parameters(dtype: torch.dtype = torch.float32, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def copies(params: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    return [torch.nn.Parameter(p.detach().clone().to(dtype or p.dtype)) for p in params]


def drive(optimizer: Any, steps: int = 3, seed: int = 1, after: Callable[[], Any] = int, sign: float = 1.0) -> None:
    """Run steps with gradients that depend only on the seed and the order of the parameters."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                g = torch.randn(p.shape, generator=generator, dtype=torch.float64) * (1 + step % 3)
                p.grad = (sign * g).to(p.dtype)
        optimizer.step()
        after()


def assert_same(params: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for value, other in zip(params, expected, strict=True):
        assert torch.equal(value, other)


def distance(params: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest distance of a parameter, relative to its norm if that is above 1, the initial size of an element."""
    pairs = [(value.detach().double(), other.detach().double()) for value, other in zip(params, expected, strict=True)]
    return max(float((value - other).norm() / max(1.0, other.norm())) for value, other in pairs)


def params_of(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def save_and_load(state: Any, weights_only: bool) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


# 100 steps, each rounding the weights by half a unit in the last place: 6e-8 and 1e-16.
CLOSE = {torch.float32: 1e-6, torch.float64: 1e-13}
