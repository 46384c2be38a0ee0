"""The contract of step(), for every optimizer in every configuration."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

from bellwether.optimizers import AdamW, Lamb
from tests.optimizers.configurations import (
    OPTIMIZERS,
    assert_same,
    copies,
    drive,
    every,
    parameters,
    params_of,
    save_and_load,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@every
def test_closure(name: str) -> None:
    """step() returns the closure's loss, and enables gradients inside it even under no_grad."""
    p = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer, calls = OPTIMIZERS[name]([p]), []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [optimizer.step(closure).item() for _ in range(3)]
    assert calls == [True, True, True]
    assert losses[0] == 25.0 > losses[2]  # the first step of SOAP changes no weight
    assert optimizer.step() is None


@every
def test_zero_grad(name: str) -> None:
    params = parameters()
    optimizer = OPTIMIZERS[name](params)
    drive(optimizer, 1)
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in params)
    optimizer.step()
    assert all(optimizer.state[p]["step"] == 2 for p in params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    optimizer.step()
    assert all(optimizer.state[p]["step"] == 2 for p in params)


@every
def test_zero_gradients_do_not_change_weights_in_the_first_step(name: str, kernel: str) -> None:
    params, before = parameters(), parameters()
    optimizer = OPTIMIZERS[name](params, kernel=kernel, weight_decay=0.0)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert_same(params, before)


@every
def test_zero_lr_does_not_change_weights(name: str, kernel: str) -> None:
    params, before = parameters(), parameters()
    optimizer = OPTIMIZERS[name](params, kernel=kernel, weight_decay=0.1)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    drive(optimizer)
    assert_same(params, before)
    assert all(optimizer.state[p]["step"] == 3 for p in params)


@every
def test_lr_is_read_at_every_step(name: str, kernel: str) -> None:
    params, other_params = parameters(), parameters()
    optimizer = OPTIMIZERS[name](params, kernel=kernel, lr=0.5)
    other = OPTIMIZERS[name](other_params, kernel=kernel, lr=0.25)
    for group in optimizer.param_groups:
        group["lr"] = 0.25
    for group in other.param_groups:
        if "peak_lr" in group:
            group["peak_lr"] = 0.5
    drive(optimizer)
    drive(other)
    assert_same(params, other_params)


@every
def test_lr_tensor(name: str, kernel: str) -> None:
    """An lr given as a tensor, into which schedules write."""
    params, other_params = parameters(), parameters()
    optimizer = OPTIMIZERS[name](params, kernel=kernel, lr=torch.tensor(0.125))
    other = OPTIMIZERS[name](other_params, kernel=kernel, lr=0.125)
    for o in (optimizer, other):
        drive(o, after=lr_scheduler.ExponentialLR(o, 0.5).step)  # exact in any precision
    assert isinstance(optimizer.param_groups[0]["lr"], Tensor)
    assert_same(params, other_params)
    third = OPTIMIZERS[name](copies(params), kernel=kernel)
    third.load_state_dict(save_and_load(optimizer.state_dict(), weights_only=True))
    drive(optimizer)
    drive(third)
    assert_same(params, params_of(third))


@every
def test_maximize_equals_minimizing_the_negative(name: str, kernel: str) -> None:
    params, other_params = parameters(), parameters()
    drive(OPTIMIZERS[name](params, kernel=kernel, maximize=True), 5)
    drive(OPTIMIZERS[name](other_params, kernel=kernel), 5, sign=-1.0)
    assert_same(params, other_params)


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_step_does_not_change_gradients(name: str, mode: Any, kernel: str) -> None:
    params = parameters()
    optimizer = OPTIMIZERS[name](params, kernel=kernel, weight_decay=0.1)
    kept = []
    for p in params:
        p.grad = torch.randn_like(p)
        kept.append((p.grad, p.grad.clone()))
    with mode():
        optimizer.step()
        optimizer.step()
    for p, before, (grad, copied) in zip(params, parameters(), kept, strict=True):
        assert p.grad is grad
        assert torch.equal(grad, copied)
        assert p.is_leaf
        assert p.requires_grad
        assert not torch.equal(p, before)


def test_gradient_with_graph_leaves_no_graph_in_the_state(kernel: str) -> None:
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = Lamb([p], kernel=kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a reference cycle
        p.pow(3).sum().backward(create_graph=True)
    optimizer.step()
    assert not any(value.requires_grad for value in optimizer.state[p].values())
    p.grad = None


@every
def test_sparse_gradients_are_refused(name: str) -> None:
    embedding = torch.nn.Embedding(10, 3, sparse=True)
    optimizer = OPTIMIZERS[name](embedding.parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()


def test_step_tensor_that_parameters_share_counts_each_step_once() -> None:
    """DeepSpeed's universal checkpoint gives all tensors the same one."""
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    optimizer = AdamW(params, lr=0.1)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    shared = torch.tensor(5.0)
    for p in params[:2]:
        optimizer.state[p]["step"] = shared
    for p in params:
        p.grad = None
    for _ in range(2):
        for p in params:  # one at a time, as ZeRO-3 steps its sub-groups
            p.grad = torch.ones_like(p)
            optimizer.step()
            p.grad = None
    assert [optimizer.state[p]["step"].item() for p in params] == [7, 7, 3]
    assert shared == 5
    for p in params:
        p.grad = torch.ones_like(p)
        optimizer.state[p]["step"] = shared
    optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [6, 6, 6]


def test_step_tensors_are_not_shared_with_an_optimizer_that_loaded_them() -> None:
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer, other = AdamW([p], lr=0.1), AdamW([q], lr=0.1)
    p.grad, q.grad = torch.ones(3), torch.ones(3)
    optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    for _ in range(3):
        other.step()
    assert (optimizer.state[p]["step"].item(), other.state[q]["step"].item()) == (1, 4)


def test_state_and_dtype_that_change_between_steps_are_seen() -> None:
    """What is kept from step to step is what a tensor's identity decides, and no more."""
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = AdamW(params, lr=0.1, weight_decay=0.0)
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    del optimizer.state[params[0]]
    params[1].data = params[1].data.bfloat16()
    for p in params:
        p.grad = torch.ones(3, dtype=p.dtype)
    optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [1, 3]
    assert params[1].dtype == torch.bfloat16
    for p in params:
        torch.testing.assert_close(p.float(), torch.full((3,), 0.7), rtol=0.01, atol=0.0)


def test_each_tensor_counts_its_own_steps_in_any_combination() -> None:
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(5)]
    optimizer, generator = Lamb(params), torch.Generator().manual_seed(0)
    expected = [0] * len(params)
    for step in range(12):
        present = [True] * 5 if step % 4 < 2 else (torch.rand(5, generator=generator) < 0.5).tolist()
        for i, (p, is_present) in enumerate(zip(params, present, strict=True)):
            p.grad = torch.ones(2) if is_present else None
            expected[i] += is_present
        if step == 7:  # a loader puts a count of its own
            optimizer.state[params[2]]["step"] = optimizer.state[params[2]]["step"].clone() + 5
            expected[2] += 5
        optimizer.step()
        assert [int(optimizer.state[p]["step"]) if p in optimizer.state else 0 for p in params] == expected
