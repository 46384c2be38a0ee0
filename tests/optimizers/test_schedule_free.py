"""Schedule-Free AdamW, apart from its arithmetic, which test_sharded.py compares with a reference under every engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from bellwether.optimizers import AdamWScheduleFree, Lookahead, WeightAverage
from tests.optimizers.configurations import copies, distance, drive, parameters

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"betas": (0.8, 0.95), "weight_decay": 0.1, "warmup_steps": 4, "r": 0.5}])
def test_equals_the_package_schedulefree(options: dict[str, Any], dtype: torch.dtype) -> None:
    """The authors' package, in training and in evaluation."""
    schedulefree = pytest.importorskip("schedulefree")
    params = parameters(dtype)
    others = copies(params)
    ours = AdamWScheduleFree(params, lr=0.05, **options)
    theirs = schedulefree.AdamWScheduleFree(others, lr=0.05, foreach=False, **options)
    theirs.train()
    bar = 1e-13 if dtype == torch.float64 else 1e-6
    for steps in (3, 9):
        drive(ours, steps, seed=steps)
        drive(theirs, steps, seed=steps)
        assert distance(params, others) < bar
        theirs.eval()
        with ours.averaged():
            assert distance(params, others) < bar
        theirs.train()


def test_average_under_a_schedule_that_warms_up_equals_the_warm_up_inside() -> None:
    params, others = parameters(), parameters()
    outside, inside = AdamWScheduleFree(params, lr=0.1), AdamWScheduleFree(others, lr=0.1, warmup_steps=4)
    schedule = lr_scheduler.LambdaLR(outside, lambda step: min(1.0, (step + 1) / 4))
    drive(outside, 8, after=schedule.step)
    drive(inside, 8)
    with outside.averaged(), inside.averaged():
        assert distance(params, others) < 1e-6


def test_weights_are_averaged_outside_of_training_only() -> None:
    p = nn.Parameter(torch.tensor([4.0]))
    optimizer = AdamWScheduleFree([p], lr=1.0)
    with optimizer.averaged():
        assert p.item() == 4.0  # no step yet
    for _ in range(3):
        p.grad = torch.ones(1)
        optimizer.step()
    before = p.item()
    with optimizer.averaged():
        assert p.item() == pytest.approx(2.0)
        for action in (optimizer.state_dict, optimizer.step, optimizer.averaged().__enter__):
            with pytest.raises(RuntimeError, match="averages are swapped in"):
                action()
    assert p.item() == before


def test_16_bit_weights_are_averaged_in_fp32() -> None:
    """With Kahan summation, z and the average are those of fp32 weights but for the last rounding, of 2^-9."""
    wide = parameters()
    narrow = copies(wide, torch.bfloat16)
    wide = copies(narrow, torch.float32)
    ours, exact = AdamWScheduleFree(narrow, lr=1e-3, kahan_sum=True), AdamWScheduleFree(wide, lr=1e-3)
    for step in range(50):
        for p, q in zip(narrow, wide, strict=True):
            p.grad = torch.full_like(p, 1.0 + step % 3)
            q.grad = p.grad.float()
        ours.step()
        exact.step()
    with ours.averaged(), exact.averaged():
        assert distance(narrow, wide) < 2**-8
    averages = [ours.average_of(p) for p in narrow]
    assert all(a.dtype == torch.float32 for a in averages)


@pytest.mark.parametrize("regrouped", [False, True])
def test_scalars_continue_the_average(regrouped: bool) -> None:
    """Also where the parameters are grouped otherwise, with other rates: c depends on ratios of rates alone."""

    def make(params: list[Any], groups: int) -> AdamWScheduleFree:
        options = [{"params": params[:2]}, {"params": params[2:]}] if groups == 2 else [{"params": params}]
        if groups == 2:
            options[1]["lr"] = 0.03
        return AdamWScheduleFree(options, lr=0.1, warmup_steps=3)

    params = parameters()
    one = make(params, 2)
    drive(one, 4)
    other = make(copies(params), 1 if regrouped else 2)
    other.load_scalars(one.scalars())
    for a, b in zip(params, other.shards, strict=True):
        other.state[b.tensor].update({k: v.clone() for k, v in one.state[a].items()})
    drive(one, 1, seed=2)
    drive(other, 1, seed=2)
    for group in other.param_groups:
        expected = one.param_groups[0]
        share = group["lr_max"] ** 2 / group["weight_sum"]
        assert share == pytest.approx(expected["lr_max"] ** 2 / expected["weight_sum"], rel=1e-12)
        assert group["k"] == 5
    assert distance([s.tensor for s in other.shards][:2], params[:2]) < 1e-6


one = [nn.Parameter(torch.ones(2))]
REFUSED = {
    "beta1": (lambda: AdamWScheduleFree(one, betas=(0.0, 0.9)), ValueError, "the first must be above 0"),
    "groups": (
        lambda: AdamWScheduleFree([{"params": one}, {"params": [nn.Parameter(torch.ones(1))], "betas": (0.8, 0.9)}]),
        ValueError, "write the same beta1 in all",
    ),
    "warm-up": (lambda: AdamWScheduleFree(one, warmup_steps=0.5), ValueError, "warmup_steps=0.5: must be a whole number"),
    "r": (lambda: AdamWScheduleFree(one, r=-1.0), ValueError, "r=-1.0: must be a finite number"),
    "mode": (lambda: AdamWScheduleFree(one, weight_decay_mode="prox"), ValueError, "write 'l2' or 'decoupled'"),
    "trust": (lambda: AdamWScheduleFree([{"params": one, "trust_ratio": True}]), ValueError, "trust_ratio=True: AdamWScheduleFree does not"),
    "capturable": (lambda: AdamWScheduleFree([{"params": one, "capturable": True}]), ValueError, "capturable=True: AdamWScheduleFree does not"),
    "lookahead": (lambda: Lookahead(AdamWScheduleFree(one)), TypeError, "Lookahead around AdamWScheduleFree: it averages the weights itself"),
    "average": (lambda: WeightAverage(AdamWScheduleFree(one)), TypeError, "WeightAverage around AdamWScheduleFree"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        make()
