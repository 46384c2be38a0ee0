"""Adam, AdamW, RAdam and SGD equal torch's optimizers of the same name, and load each other's state."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

from bellwether import optimizers
from bellwether.optimizers import SGD, AdamW
from tests.optimizers.configurations import (
    CLOSE,
    assert_same,
    copies,
    distance,
    drive,
    parameters,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# torch's names of the options, and the arguments of its optimizers.
TWINS: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("Adam", dict(lr=0.01, eps=1e-6)),
    "adam-l2": ("Adam", dict(lr=0.01, weight_decay=0.1, betas=(0.8, 0.99))),
    "adam-l2-amsgrad": ("Adam", dict(lr=0.01, weight_decay=0.1, amsgrad=True, betas=(0.9, 0.9))),
    "adam-maximize": ("Adam", dict(lr=0.01, weight_decay=0.1, maximize=True)),
    "adamw": ("AdamW", dict(lr=0.01, weight_decay=0.1)),
    "adamw-defaults": ("AdamW", {}),
    "adamw-amsgrad": ("AdamW", dict(lr=0.01, amsgrad=True, betas=(0.9, 0.9))),
    "adamw-maximize": ("AdamW", dict(lr=0.01, weight_decay=0.1, maximize=True)),
    "radam": ("RAdam", dict(lr=0.01)),
    "radam-l2": ("RAdam", dict(lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))),
    "radam-decoupled": ("RAdam", dict(lr=0.01, weight_decay=0.1, decoupled_weight_decay=True)),
    "radam-maximize": ("RAdam", dict(lr=0.01, maximize=True)),
    "sgd": ("SGD", dict(lr=0.01)),
    "sgd-momentum": ("SGD", dict(lr=0.01, momentum=0.9)),
    "sgd-dampening-l2": ("SGD", dict(lr=0.01, momentum=0.9, dampening=0.5, weight_decay=0.1)),
    "sgd-nesterov-l2": ("SGD", dict(lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1)),
    "sgd-maximize": ("SGD", dict(lr=0.01, momentum=0.9, dampening=0.1, weight_decay=0.1, maximize=True)),
}

twins = pytest.mark.parametrize("twin", TWINS)


def twin_of(twin: str, params: Sequence[Tensor], **others: Any) -> Any:
    kind, options = TWINS[twin]
    return getattr(optimizers, kind)(params, **options, **others)


def torch_twin(twin: str, params: Sequence[Tensor]) -> Any:
    kind, options = TWINS[twin]
    return getattr(torch.optim, kind)(params, **options)


@twins
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch(twin: str, dtype: torch.dtype, kernel: str) -> None:
    """Also with a rate, and for Adam and Nesterov a momentum, that changes at every step."""
    if kernel == "cpu" and dtype != torch.float32:
        pytest.skip("the C++ kernel is for float32")
    params, torch_params = parameters(dtype), parameters(dtype)
    for optimizer in (twin_of(twin, params, kernel=kernel), torch_twin(twin, torch_params)):
        momentum = optimizer.defaults.get("momentum", 0.9) > 0 and not optimizer.defaults.get("dampening")
        schedule = lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=101, cycle_momentum=momentum)
        drive(optimizer, 100, after=schedule.step)
    assert distance(params, torch_params) < CLOSE[dtype]


@twins
@pytest.mark.parametrize("before", [1, 8])
def test_continues_from_torch_state(twin: str, before: int) -> None:
    """torch's state and hyperparameters, loaded into an optimizer that was created with others."""
    torch_params = parameters(torch.float64)
    other = torch_twin(twin, torch_params)
    drive(other, before)
    params = copies(torch_params)
    optimizer = getattr(optimizers, TWINS[twin][0])(params, lr=123.0, weight_decay=0.77)
    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    drive(optimizer, 8, seed=2)
    drive(other, 8, seed=2)
    assert distance(params, torch_params) < CLOSE[torch.float64]


@pytest.mark.parametrize("twin", [t for t in TWINS if t.startswith("adam")])
def test_torch_continues_from_our_state(twin: str) -> None:
    params = parameters(torch.float64)
    optimizer = twin_of(twin, params)
    drive(optimizer, 8)
    torch_params = copies(params)
    other = torch_twin(twin, torch_params)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    drive(optimizer, 8, seed=2)
    drive(other, 8, seed=2)
    assert distance(params, torch_params) < CLOSE[torch.float64]


def test_peak_lr_is_taken_from_a_torch_scheduler() -> None:
    p = parameters()
    other = torch.optim.SGD(p, lr=0.4)
    lr_scheduler.LambdaLR(other, lambda step: 0.25)
    optimizer = SGD(p, lr=1.0, weight_decay=0.1, weight_decay_mode="prox")
    optimizer.load_state_dict(other.state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["peak_lr"], group["weight_decay_mode"]) == (0.1, 0.4, "prox")


def test_step_saved_as_a_number() -> None:
    params, torch_params = parameters(), parameters()
    optimizer, other = AdamW(params), AdamW(torch_params)
    for o in (optimizer, other):
        drive(o)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = 3
    optimizer.load_state_dict(saved)
    for o in (optimizer, other):
        drive(o)
    assert_same(params, torch_params)
