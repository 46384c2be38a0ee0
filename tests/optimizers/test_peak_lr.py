"""The peak learning rate of the weight decay modes that are relative to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from bellwether.optimizers import SGD, AdamW, Lamb, RAdam, WarmupLinear
from bellwether.optimizers.weight_decay import peak_lr
from tests.optimizers import sharded
from tests.ranks import Ranks

MODES = ["independent", "prox"]
modes = pytest.mark.parametrize("mode", MODES)
MAKERS: dict[str, Callable[..., Any]] = {"adamw": AdamW, "lamb": Lamb, "radam": RAdam, "sgd": SGD}


def weight() -> torch.nn.Parameter:
    p = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    p.grad = torch.zeros_like(p)
    return p


@modes
@pytest.mark.parametrize("rule", MAKERS)
def test_lr_above_the_peak_is_refused(rule: str, mode: str) -> None:
    """A rate of 1e-6 raised to 1e-3 by hand took a weight from 1 to -9."""
    p = weight()
    optimizer = MAKERS[rule]([p], lr=1e-6, weight_decay=0.01, weight_decay_mode=mode)
    optimizer.param_groups[0]["lr"] = 1e-3
    with pytest.raises(ValueError, match=r"param group 0: lr=0\.001 is above .* 1e-06 .*peak_lr=0\.001"):
        optimizer.step()
    assert torch.equal(p, torch.ones_like(p))
    assert not optimizer.state


@modes
def test_given_peak_is_the_unit(mode: str) -> None:
    p = weight()
    optimizer = AdamW([p], lr=1e-6, peak_lr=1e-3, weight_decay=0.5, weight_decay_mode=mode)
    optimizer.param_groups[0]["lr"] = 5e-4
    optimizer.step()
    expected = 1 - 0.25 if mode == "independent" else 1 / 1.25
    assert p.tolist() == pytest.approx([expected] * 2, rel=1e-15)


def test_group_has_its_own_peak() -> None:
    p, q = weight(), weight()
    optimizer = AdamW(
        [{"params": [p]}, {"params": [q], "peak_lr": 1e-2}], lr=1e-3, weight_decay=0.5, weight_decay_mode="prox"
    )
    for group in optimizer.param_groups:
        group["lr"] = 5e-3
    with pytest.raises(ValueError, match="param group 0"):
        optimizer.step()
    optimizer.param_groups[0]["peak_lr"] = 5e-3
    optimizer.step()
    assert p.tolist() == pytest.approx([1 / 1.5] * 2)
    assert q.tolist() == pytest.approx([1 / 1.25] * 2)


def test_given_peak_is_the_peak_under_one_cycle_too() -> None:
    p, q = weight(), weight()
    for tensor, options in ((p, {"peak_lr": 1.0}), (q, {})):
        optimizer = AdamW([tensor], lr=0.05, weight_decay=0.5, weight_decay_mode="independent", **options)
        lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=10, cycle_momentum=False)
        optimizer.param_groups[0]["lr"] = 0.05
        optimizer.step()
    assert p.tolist() == pytest.approx([1 - 0.5 * 0.05] * 2)
    assert q.tolist() == pytest.approx([0.5] * 2)


def test_peak_below_lr_is_refused_by_the_constructor() -> None:
    with pytest.raises(ValueError, match=r"peak_lr=0\.001 is below lr=0\.01"):
        AdamW([weight()], lr=1e-2, peak_lr=1e-3, weight_decay_mode="prox")


@modes
def test_cyclic_lr_names_no_peak(mode: str) -> None:
    """It stores the base rate in the group, as the initial one, and the peak nowhere."""
    p = weight()
    optimizer = AdamW([p], lr=1.0, weight_decay=0.5, weight_decay_mode=mode)
    schedule = lr_scheduler.CyclicLR(optimizer, base_lr=1e-3, max_lr=1e-2, step_size_up=1)
    optimizer.step()
    schedule.step()
    with pytest.raises(ValueError, match=r"lr=0\.01 is above .* 0\.001"):
        optimizer.step()
    p = weight()
    optimizer = AdamW([p], lr=1e-3, peak_lr=1e-2, weight_decay=0.5, weight_decay_mode=mode)
    schedule = lr_scheduler.CyclicLR(optimizer, base_lr=1e-3, max_lr=1e-2, step_size_up=1)
    for _ in range(2):
        optimizer.step()
        schedule.step()
    etas = (0.1, 1.0)
    factors = [1 - 0.5 * eta if mode == "independent" else 1 / (1 + 0.5 * eta) for eta in etas]
    assert p.tolist() == pytest.approx([factors[0] * factors[1]] * 2)


def test_schedule_knows_the_peak_of_a_changed_lr() -> None:
    optimizer = AdamW([weight()], lr=1e-3, weight_decay=0.5, weight_decay_mode="prox")
    optimizer.param_groups[0]["lr"] = 1e-2
    schedule = WarmupLinear(optimizer, batch=1, total=10, warmup=5)
    assert peak_lr(optimizer.param_groups[0]) == 1e-2
    for _ in range(6):
        optimizer.step()
        schedule.step()


def test_lr_below_an_assumed_peak_warns() -> None:
    """A default lr of 1e-3 under a schedule that peaks at 1e-4 and is not torch's: a tenth of the decay."""
    p = weight()
    optimizer = AdamW([p], weight_decay=0.5, weight_decay_mode="independent")
    optimizer.param_groups[0]["lr"] = 1e-4
    with pytest.warns(UserWarning, match=r"made with, 0\.001, as the peak .*0\.1 x weight_decay"):
        optimizer.step()


def _warmup(stage: int, options: dict[str, Any]) -> str:
    import deepspeed
    from deepspeed.runtime.lr_schedules import WarmupLR

    from bellwether.optimizers import attach

    model = sharded.Toy()
    optimizer = AdamW(sharded.param_groups(model), weight_decay=0.01, weight_decay_mode="independent", **options)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, lr_scheduler=lambda o: WarmupLR(o, warmup_max_lr=0.05, warmup_num_steps=3),
        config={
            "train_batch_size": sharded.GLOBAL_BATCH, "gradient_clipping": 0.0, "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": stage},
        },
    )  # fmt: skip
    attach(engine)
    try:
        for step in range(5):
            sharded.feed(engine, step)
    except ValueError as error:
        return str(error)
    finally:
        engine.destroy()
    return "trained"


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_warmup_above_the_default_lr_is_refused(ranks: Ranks, stage: int) -> None:
    """eta was 50: the weights shrank by half in each step."""
    for answer in ranks.run(_warmup, stage, {}):
        assert "above the peak learning rate 0.001" in answer
    assert ranks.run(_warmup, stage, {"peak_lr": 0.05}) == ["trained", "trained"]
