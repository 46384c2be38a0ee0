"""Param groups that come too late for an engine or a schedule."""

from __future__ import annotations

import pytest
import torch

from bellwether.optimizers import Lamb, Lookahead, WarmupLinear
from tests.optimizers.configurations import drive, parameters


@pytest.mark.parametrize("wrapped", [False, True])
def test_group_after_attach_is_refused(wrapped: bool) -> None:
    base = Lamb(parameters(), lr=0.1)
    optimizer = Lookahead(base) if wrapped else base
    optimizer.use_shards(optimizer.shards)
    with pytest.raises(RuntimeError, match=r"after attach.*before the engine is built"):
        optimizer.add_param_group({"params": parameters()})
    assert len(optimizer.param_groups) == 1
    drive(optimizer, 1)


def test_schedule_made_before_a_group_names_the_way_out() -> None:
    optimizer = Lamb(parameters(), lr=0.1)
    schedule = WarmupLinear(optimizer, batch=1, total=10)
    drive(optimizer, 1)
    schedule.step()
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "lr": 0.2})
    for action in (schedule.step, lambda: schedule.seek(2)):
        with pytest.raises(RuntimeError, match=r"2 param groups, and the schedule was made for 1: .*new schedule"):
            action()
    renewed = WarmupLinear(optimizer, batch=1, total=10)
    renewed.seek(5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.045, 0.09])
