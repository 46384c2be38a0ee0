"""Checkpoints of every optimizer and wrapper load on another number of processes and at another ZeRO stage.

The result is compared with an uninterrupted float64 run, with the tolerance of tests/optimizers/test_sharded.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bellwether.trainer import checkpoint
from bellwether.trainer.checkpoint import Position
from tests.optimizers import sharded
from tests.optimizers.family import REPRESENTATIVES, SHARDED
from tests.optimizers.test_sharded import check
from tests.ranks import Ranks
from tests.tiers import covering

HALF = sharded.STEPS // 2


def _engine(rule: str, stage: int) -> tuple[Any, Any, Any]:
    """Returns our engine, the DeepSpeed engine inside it, and the world."""
    from bellwether.optimizers import WarmupConstant
    from bellwether.trainer.distributed import World
    from bellwether.trainer.engine import Engine

    ds_engine, optimizer = sharded.engine(rule, {"stage": stage, "sub_group_size": 500})
    world = World(torch.distributed.get_rank(), torch.distributed.get_world_size(), 0, torch.device("cpu"))
    return Engine(ds_engine, optimizer, WarmupConstant(optimizer, batch=1, total=1)), ds_engine, world


def _first_half(root: str) -> None:
    for rule in SHARDED:
        engine, ds_engine, world = _engine(rule, 1)
        for step in range(HALF):
            sharded.feed(ds_engine, step)
        checkpoint.save(Path(root) / rule, engine, Position(HALF, HALF * 8, 0), world, keep=1, data=[])
        engine.destroy()


def _second_half(root: str, rule: str, stage: int) -> dict[str, Any]:
    engine, ds_engine, world = _engine(rule, stage)
    checkpoint.load(checkpoint.newest(Path(root) / rule), engine, world)  # type: ignore[arg-type]
    for step in range(HALF, sharded.STEPS):
        sharded.feed(ds_engine, step)
    result = sharded.result(ds_engine, engine.optimizer)
    engine.destroy()
    return result


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Checkpoints of the first half of each run, at stage 1 on two processes."""
    root = str(tmp_path_factory.mktemp("family"))
    pair = Ranks(2)
    pair.run(_first_half, root)
    yield root
    pair.close()


@covering(lambda rule: rule in REPRESENTATIVES)
@pytest.mark.parametrize("ranks", [1, 4], indirect=True)
@pytest.mark.parametrize("rule", SHARDED)
def test_training_resumes_at_another_stage_and_world_size(ranks: Ranks, written: str, rule: str) -> None:
    check(ranks.run(_second_half, written, rule, {1: 2, 4: 3}[ranks.world_size]), rule)
