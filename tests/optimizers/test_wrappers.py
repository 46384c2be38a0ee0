"""Lookahead, Swats and WeightAverage, apart from their arithmetic, which test_sharded.py compares under every engine."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from bellwether.optimizers import (
    SGD,
    Adam,
    AdamW,
    Lamb,
    Lookahead,
    Swats,
    WarmupLinear,
    WeightAverage,
    recompute_batch_norm,
)
from tests.ranks import Ranks


def weight(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def step(optimizer: torch.optim.Optimizer, gradient: float = 1.0) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.full_like(p, gradient)
    optimizer.step()


REFUSED = {
    "k": (lambda base: Lookahead(base, k=0), ValueError, "k=0: must be an integer number of steps"),
    "alpha": (lambda base: Lookahead(base, alpha=0.0), ValueError, "alpha=0.0: must be above 0"),
    "kind": (lambda base: WeightAverage(base, "sma"), ValueError, "kind='sma': must be 'swa' or 'ema'"),
    "start": (lambda base: WeightAverage(base, start=0), ValueError, "start=0: must be an integer number of updates"),
    "every": (lambda base: WeightAverage(base, every=1.5), ValueError, "every=1.5"),
    "decay": (lambda base: WeightAverage(base, "ema", decay=1.0), ValueError, r"decay=1.0: must be in \[0, 1\)"),
    "tolerance": (lambda base: Swats(base, tolerance=0.0), ValueError, "tolerance=0.0: must be above 0"),
    "swats around sgd": (lambda base: Swats(SGD([weight(1.0)])), TypeError, r"write Swats\(AdamW"),
    "swats outside": (lambda base: Swats(Lookahead(base)), TypeError, "other wrappers outside"),
    "swats and metric": (
        lambda base: Swats(Adam([weight(1.0)], weight_decay_mode="prox-metric")), ValueError, "weight_decay_mode='prox-metric' under Swats.*write 'prox'"
    ),
    "torch's": (lambda base: Lookahead(torch.optim.Adam([weight(1.0)])), TypeError, "one of the optimizers of this"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_arguments_are_refused(case: str) -> None:
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        make(AdamW([weight(1.0)]))


def test_wrapper_shares_groups_and_state() -> None:
    """Groups and state are the inner optimizer's; schedulers and add_param_group work on the wrapper."""
    p, q = weight(1.0, 2.0), weight(3.0)
    optimizer = WeightAverage(Lookahead(Lamb([p], lr=0.1), k=2), "ema")
    optimizer.add_param_group({"params": [q], "lr": 0.1})
    schedule = WarmupLinear(optimizer, batch=1, total=10)
    calls: list[str] = []
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    step(optimizer)
    schedule.step()
    assert optimizer.param_groups is optimizer.base.param_groups is optimizer.base.base.param_groups
    assert set(optimizer.state[p]) == {"step", "exp_avg", "exp_avg_sq", "slow", "average"}
    assert calls == ["after"]
    assert optimizer.name == "WeightAverage(Lookahead(Lamb))"
    assert len(optimizer.shards) == 2
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.085)


def test_averages_are_swapped_in_and_out() -> None:
    p = weight(4.0)
    optimizer = WeightAverage(SGD([p], lr=1.0), "swa", start=2)
    with optimizer.averaged():
        assert p.item() == 4.0  # no average yet
    for _ in range(3):
        step(optimizer)
    with pytest.raises(RuntimeError, match="averages are swapped in"), optimizer.averaged():
        assert p.item() == 1.5
        step(optimizer)
    assert p.item() == 1.0  # swapped back after the exception
    step(optimizer)
    with optimizer.averaged():
        assert p.item() == 1.0


def test_swapped_averages_cannot_be_swapped_or_saved() -> None:
    p = weight(4.0)
    optimizer = WeightAverage(SGD([p], lr=1.0), "swa")
    for _ in range(2):
        step(optimizer)
    with optimizer.averaged():
        for action in (optimizer.state_dict, optimizer.averaged().__enter__, lambda: copy.deepcopy(optimizer)):
            with pytest.raises(RuntimeError, match="swapped in"):
                action()
        assert p.item() == 2.5
    assert p.item() == 2.0


def test_slow_average_of_16_bit_weights_changes() -> None:
    p = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    optimizer = WeightAverage(SGD([p], lr=0.0), "ema", decay=0.999)
    step(optimizer)
    with torch.no_grad():
        p.fill_(2.0)
    for _ in range(1000):
        step(optimizer)
    assert optimizer.state[p]["average"].tolist() == pytest.approx([2 * (1 - 0.999**1000)] * 2, rel=1e-3)
    with optimizer.averaged():
        assert p.tolist() == pytest.approx([1.264] * 2, rel=0.01)
    assert p.tolist() == [2.0, 2.0]


def test_swats_counts_parameters_of_equal_names() -> None:
    """Two models with the same names, the second with a hundred times the gradient, which determines the rate."""
    p, q = weight(1.0), weight(1.0)
    optimizer = Swats(AdamW([{"params": [("weight", p)]}, {"params": [("weight", q)]}], lr=0.1, weight_decay=0.0))
    p.grad, q.grad = torch.tensor([1.0]), torch.tensor([100.0])
    optimizer.step()
    # p.p = 2 x 0.1^2, p.g = -0.1 x 101
    assert optimizer.scalars()["swats_gamma"] / 0.001 == pytest.approx(0.02 / 10.1, rel=1e-5)


def test_swats_evaluates_every_update() -> None:
    p, q = weight(1.0), weight(1.0)
    optimizer = Swats(AdamW([p, q], lr=0.1), tolerance=1e-30)
    for i in range(6):
        gradient = torch.ones(1) * (i + 1)
        p.grad, q.grad = (gradient, None) if i % 2 else (None, gradient)
        optimizer.step()
    assert optimizer.scalars()["swats_steps"] == 6


def test_swats_switches_when_the_rate_converges_and_follows_the_schedule() -> None:
    """With a constant gradient Adam's step is lr, so the equivalent rate of SGD is lr / g and constant."""
    p = weight(1.0, 1.0)
    optimizer = Swats(AdamW([p], lr=0.5, weight_decay=0.0, betas=(0.5, 0.999)), tolerance=1e-5)
    for switched in (False, False, True):
        assert optimizer.switched is switched
        step(optimizer, 2.0)
    assert optimizer.state[p]["exp_avg"].tolist() == [2.0, 2.0]  # SGD's momentum now
    # The momentum starts at 0: (1 - beta1) of a full step. AdamW moved by 0.5 twice.
    torch.testing.assert_close(p.detach(), torch.full((2,), 1.0 - 0.5 - 0.5 - 0.5 * 0.5))
    optimizer.param_groups[0]["lr"] = 0.05
    before = p.detach().clone()
    step(optimizer, 2.0)
    torch.testing.assert_close(before - p.detach(), torch.full((2,), 0.05 * 0.5 * 1.5))


def test_swats_ends_trust_ratios() -> None:
    p = weight(3.0, 4.0)
    optimizer = Swats(Lamb([p], lr=0.01), tolerance=1.0)
    for _ in range(4):
        step(optimizer)
    assert optimizer.switched
    assert optimizer.param_groups[0]["trust_ratio"] is False


def _statistics() -> Any:
    torch.manual_seed(dist.get_rank())
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4, track_running_stats=False))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    batches = [torch.randn(8, 3) * (dist.get_rank() + 1) for _ in range(3)]
    recompute_batch_norm(model, batches)
    norm = model[1]
    inside = [model[0](b) for b in batches]
    return (
        norm.running_mean.tolist(), norm.running_var.tolist(), norm.momentum, model.training,
        torch.stack([x.mean(0) for x in inside]).mean(0).tolist(), torch.stack([x.var(0) for x in inside]).mean(0).tolist(),
    )  # fmt: skip


def test_batch_norm_is_recomputed_over_all_ranks(ranks: Ranks) -> None:
    results = ranks.run(_statistics)
    means, variances = (torch.tensor([r[i] for r in results]).mean(0) for i in (4, 5))
    for mean, variance, momentum, training, _, _ in results:
        torch.testing.assert_close(torch.tensor(mean), means)
        torch.testing.assert_close(torch.tensor(variance), variances)
        assert momentum == 0.1
        assert training


def test_weights_are_restored_if_publish_fails() -> None:
    p = weight(4.0)
    optimizer = WeightAverage(SGD([p], lr=1.0), "swa")
    for _ in range(2):
        step(optimizer)
    fails = [True]

    def publish() -> None:
        if fails and fails.pop():
            raise OSError("the engine is gone")

    optimizer.use_shards(optimizer.shards, publish=publish)
    with pytest.raises(OSError, match="gone"), optimizer.averaged():
        pass
    assert p.item() == 2.0
    step(optimizer)
