"""The engine: its training step, and errors that name the config key at fault."""

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


class _Linear(torch.nn.Module):
    """A linear model; returns half the squared error of each sample, and whether it is small: [B], [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, 3))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        losses = 0.5 * ((x @ self.weight.T).squeeze(1) - y).square()
        return losses, losses < 0.1


def _train_step(stage: int) -> dict[str, Any]:
    """One step of SGD on 2 micro-batches of 2 samples per rank, and the same step computed by hand."""
    from bellwether.trainer import engine
    from bellwether.trainer.phases import plan

    rank, size = dist.get_rank(), dist.get_world_size()
    raw = {
        "name": "x", "duration": "4 steps", "model": {"kind": "cifar-resnet", "depth": 8},
        "data": {"kind": "images", "size": 8}, "batch": {"global": 4 * size, "micro": 2}, "engine": {"stage": stage},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0, "weight_decay": 0, "clip": 0, "loss_factor": 2},
        "schedule": {"kind": "linear", "warmup": 0},
    }  # fmt: skip
    (phase,) = plan([c.validate(raw)], size, [100])
    built = engine.build(_Linear(), phase, World(rank, size, rank, torch.device("cpu")))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, size, 2, 3, generator=generator), torch.randn(2, size, 2, generator=generator)
    lr = built.schedule.get_last_lr()[0]
    result = built.train_step({"x": x[a, rank], "y": y[a, rank]} for a in range(2))
    by_hand = _Linear()
    losses, _ = by_hand(x.reshape(-1, 3), y.reshape(-1))
    (2 * losses.mean()).backward()
    assert by_hand.weight.grad is not None
    norm = by_hand.weight.grad.norm()
    parameter = dict(built.task.named_parameters())["weight"]
    with built.gathered(parameter):
        weight = parameter.detach().clone()
    expected = by_hand.weight.detach() - lr * by_hand.weight.grad
    found = {
        "loss": (result.loss.item(), losses.reshape(2, size, 2)[:, rank].mean().item()),
        "grad_norm": (float(result.grad_norm or 0.0), norm.item()),
        "weight": (weight.flatten().tolist(), expected.flatten().tolist()),
        "lr": (result.lr, lr),
        "loss_scale": (result.loss_scale, 1.0),
    }
    assert built.schedule.get_last_lr()[0] < lr
    built.destroy()
    return found


@pytest.mark.parametrize("ranks", [1, 2], indirect=True)
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_train_step_is_one_update_on_the_global_batch(ranks: Ranks, stage: int) -> None:
    for found in ranks.run(_train_step, stage):
        for name, (value, expected) in found.items():
            assert value == pytest.approx(expected, rel=1e-5), name
