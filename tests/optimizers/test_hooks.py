"""Hooks, profiler records, repr and type hints of every optimizer in every configuration."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bellwether.optimizers import SGD, Adam, AdamW, Lamb, Lars, RAdam
from tests.optimizers.configurations import (
    OPTIMIZERS,
    drive,
    every,
    group_of,
    parameters,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@every
def test_hooks(name: str) -> None:
    params, events = parameters(), []
    optimizer = OPTIMIZERS[name](params)
    drive(optimizer, 1)  # the first step of SOAP changes no weight
    start = params[0].detach().clone()

    def record(event: str) -> Callable[..., None]:
        return lambda *arguments: events.append(event)

    def before(o: Any, args: Any, kwargs: Any) -> None:
        events.append("before step")
        assert o is optimizer
        assert torch.equal(params[0], start)

    def after(o: Any, args: Any, kwargs: Any) -> None:
        events.append("after step")
        assert not torch.equal(params[0], start)

    handles = [
        optimizer.register_step_pre_hook(before),
        optimizer.register_step_post_hook(after),
        optimizer.register_state_dict_pre_hook(record("before state_dict")),
        optimizer.register_state_dict_post_hook(lambda o, state_dict: {**state_dict, "note": 1}),
        optimizer.register_load_state_dict_pre_hook(lambda o, state_dict: events.append(f"load {state_dict['note']}")),
        optimizer.register_load_state_dict_post_hook(record("after load")),
    ]
    drive(optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert events == ["before step", "after step", "before state_dict", "load 1", "after load"]
    for handle in handles:
        handle.remove()
    drive(optimizer, 1)
    assert optimizer.state_dict().keys() == {"state", "param_groups"}
    assert len(events) == 5


@every
def test_profiler_records_the_step(name: str) -> None:
    optimizer = OPTIMIZERS[name](parameters())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        drive(optimizer, 2)
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts[f"Optimizer.step#{type(optimizer).__name__}.step"] == 2


@every
def test_repr_has_name_groups_and_options(name: str) -> None:
    optimizer = OPTIMIZERS[name](parameters(), lr=0.125)
    optimizer.add_param_group(group_of(name, parameters(), lr=0.375))
    text = repr(optimizer)
    for words in (type(optimizer).__name__, "Parameter Group 1", "lr: 0.125", "lr: 0.375", "weight_decay: "):
        assert words in text


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW, Lamb, Lars, RAdam])
def test_type_hints_resolve(kind: type) -> None:
    hints = typing.get_type_hints(kind.__init__)
    assert hints["lr"] == float | Tensor
    assert {"params", "weight_decay", "kernel", "maximize", "return"} <= hints.keys()
