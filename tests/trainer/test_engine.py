"""Errors of `engine.build` name the config key that is at fault."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bellwether.trainer import config as c
from bellwether.trainer.distributed import World
from tests.ranks import Ranks

SIZE = {"zero_optimization": {"reduce_bucket_size": 1000}}  # any keys that DeepSpeed accepts


def _build(precision: str, unsupported_on: list[int], failure: str | None = None) -> Any:
    """Build an engine with ``engine.deepspeed`` set; returns what it raises, as (type, key, message)."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    from bellwether.trainer import engine
    from bellwether.trainer.phases import plan

    rank, size = dist.get_rank(), dist.get_world_size()
    raw = {
        "name": "x", "duration": "1 steps", "model": {"kind": "cifar-resnet", "depth": 8},
        "data": {"kind": "images", "size": 8}, "batch": {"global": 8}, "optimizer": {"lr": 0.1},
        "engine": {"precision": precision, "deepspeed": SIZE},
    }  # fmt: skip
    (phase,) = plan([c.validate(raw)], size, [100])

    def fail(**_: Any) -> None:
        raise torch.OutOfMemoryError(failure)

    with pytest.MonkeyPatch.context() as patch:
        if rank in unsupported_on:
            accelerator = type(get_accelerator())
            patch.setattr(accelerator, "is_bf16_supported", lambda self: True)
            patch.setattr(accelerator, "is_fp16_supported", lambda self: False)
        else:
            patch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: True)
        if failure is not None:
            patch.setattr(deepspeed, "initialize", fail)
        try:
            engine.build(torch.nn.Linear(2, 2), phase, World(rank, size, rank, torch.device("cpu")))
        except Exception as error:
            return type(error).__name__, getattr(error, "key", None), str(error)
    return None


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("unsupported_on", [[0, 1], [1]], ids=["everywhere", "on one rank"])
def test_unsupported_precision_is_refused_on_all_ranks(ranks: Ranks, unsupported_on: list[int]) -> None:
    kind, key, message = ranks.run(_build, "fp16", unsupported_on)[0]
    assert ranks.run(_build, "fp16", unsupported_on) == [(kind, key, message)] * 2
    assert (kind, key) == ("ConfigError", "engine.precision")
    assert message == (
        f"engine.precision: 'fp16': the CPU of {socket.gethostname()} does not support it; supported there: fp32, bf16"
    )


@pytest.mark.parametrize("ranks", [1], indirect=True)
def test_out_of_memory_is_not_blamed_on_the_config(ranks: Ranks) -> None:
    found = ranks.run(_build, "fp32", [], "no memory left")
    assert found == [("OutOfMemoryError", None, "no memory left")]


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_run_with_unsupported_precision_creates_no_run_directory(ranks: Ranks, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"engine\.precision: 'fp16': the CPU of"):
        ranks.run(_train, str(tmp_path))
    assert not list(tmp_path.iterdir())


def _train(folder: str) -> None:
    from deepspeed.accelerator import get_accelerator

    from bellwether.trainer import run

    raw = {
        "name": "x", "runs": folder, "duration": "1 steps", "model": {"kind": "cifar-resnet", "depth": 8},
        "data": {"kind": "images", "size": 8}, "batch": {"global": 8}, "optimizer": {"lr": 0.1},
        "engine": {"precision": "fp16"},
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: False)
        run.train(c.validate(raw), World(dist.get_rank(), dist.get_world_size(), 0, torch.device("cpu")))
