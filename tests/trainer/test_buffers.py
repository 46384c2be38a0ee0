from __future__ import annotations

import pytest
import torch
from torch import nn

from bellwether.trainer import buffers
from tests.ranks import Ranks


def _averaged() -> tuple[list[float], list[float], list[float]]:
    rank = torch.distributed.get_rank()
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(1, track_running_stats=False))
    model[0].running_mean.copy_(torch.tensor([1.0, 10.0]) * (rank + 1))
    before = model[0].running_mean.tolist()
    with buffers.average_buffers(model):
        inside = model[0].running_mean.tolist()
    return before, inside, model[0].running_mean.tolist()


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_running_statistics_are_averaged_inside_and_restored_afterwards(ranks: Ranks) -> None:
    for before, inside, after in ranks.run(_averaged):
        assert inside == [1.5, 15.0]
        assert after == before
