"""Every optimizer in every configuration converges, alone and under torch's schedulers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from tests.optimizers.configurations import (
    OPTIMIZERS,
    every,
    group_of,
)
from tests.tiers import covering

pytestmark = pytest.mark.usefixtures("one_thread")


@covering(lambda kernel: kernel == "cpu")
@every
def test_rosenbrock(name: str, kernel: str) -> None:
    """Along the valley to (1, 1), from a start from which no weight crosses 0, where a trust ratio would stop it."""
    p = torch.nn.Parameter(torch.tensor([1.5, 2.0]))
    optimizer = OPTIMIZERS[name]([p], kernel=kernel)

    def loss(x: float, y: float) -> float:
        return (1 - x) ** 2 + 100 * (y - x * x) ** 2

    for _ in range(1000):
        x, y = p.tolist()
        p.grad = torch.tensor([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)])
        optimizer.step()
    x, y = p.tolist()
    assert loss(x, y) < 0.02 * loss(1.5, 2.0)
    assert math.hypot(x - 1, y - 1) < 0.6 * math.hypot(0.5, 1.0)


SCHEDULERS: dict[str, Callable[[Any, float], Any]] = {
    "none": lambda optimizer, lr: None,
    "cosine": lambda optimizer, lr: lr_scheduler.CosineAnnealingLR(optimizer, 120),
    "one-cycle": lambda optimizer, lr: lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=120, cycle_momentum=False),
    "warm-up": lambda optimizer, lr: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=10), lr_scheduler.ExponentialLR(optimizer, 0.99)],
        [10],
    ),
    "plateau": lambda optimizer, lr: lr_scheduler.ReduceLROnPlateau(optimizer, patience=5),
}  # fmt: skip


@covering(lambda name, scheduler: scheduler == "one-cycle" or name in ("lamb", "adamw-independent"))
@every
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_regression(name: str, scheduler: str) -> None:
    """A linear layer, two param groups, the second at half the rate."""
    torch.manual_seed(0)
    layer, truth, x = torch.nn.Linear(6, 3), torch.nn.Linear(6, 3), torch.randn(64, 6)
    y = truth(x).detach()
    lr = {"lars-plain": 5.0}.get(name, 0.5 if name.startswith("lars") else 0.05)
    # This scheduler does not store the peak, which these modes warn of.
    warns = scheduler == "plateau" and name.endswith(("-independent", "-prox"))
    weight, bias = ({"lr": rate, **({"peak_lr": rate} if warns else {})} for rate in (lr, lr / 2))
    optimizer = OPTIMIZERS[name]([{"params": [layer.weight], **weight}], lr=lr)
    optimizer.add_param_group(group_of(name, [layer.bias], **bias))
    schedule = SCHEDULERS[scheduler](optimizer, lr)
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(layer(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if schedule is not None:
            schedule.step(*([losses[-1]] if scheduler == "plateau" else []))
    assert losses[-1] < 0.4 * losses[0]
