"""Runs of a few seconds for the scripts that measure: ResNet-8 without BatchNorm on scikit-learn's digits, trained in this process on one core."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bellwether.trainer.config import Config

SAMPLES = 1438 * 12  # twelve epochs
BASE_BATCH = 64

Batch = int | list[list[int]]

_world: Any = None


def config(batch: Batch, lr: float, seed: int, runs: Path) -> dict[str, Any]:
    """The config of a run; ``lr`` is that of batch 64, and follows the square root of the batch."""
    return {
        "name": "run", "runs": str(runs), "seed": seed, "duration": f"{SAMPLES} samples",
        "model": {"kind": "cifar-resnet", "depth": 8, "norm": "none"},  # micro-batches do not matter
        "data": {
            "kind": "images", "source": "digits", "size": 8, "flip": False, "mean": [0.3], "std": [0.37], "validation_share": 0.2,
            "workers": 0,
        },
        "batch": {"global": batch, "micro": 512}, "optimizer": {"name": "adamw", "lr": lr, "weight_decay": 0.01, "clip": 0},
        "scaling": {"rule": "sqrt", "base_batch": BASE_BATCH, "warmup": False}, "schedule": {"kind": "linear", "warmup": 0.1},
        "checkpoint": {"export": False}, "evaluate": {}, "log": {"every": "1000 steps", "report": False, "noise_scale": False},
        "engine": {"stage": 0, "device": "cpu"},
    }  # fmt: skip


def train(run: Config) -> None:
    """Train in this process, without a word."""
    global _world
    from bellwether.trainer import distributed
    from bellwether.trainer import run as trainer

    with _quiet():
        _world = _world or distributed.start("cpu")
        trainer.train(run, _world)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    sys.stdout.flush()
    kept, null = (os.dup(1), os.dup(2)), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        yield
    finally:
        for number, descriptor in enumerate(kept, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(null)
