"""Short runs for the tests of this folder: their configs, metrics and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from bellwether.trainer import checkpoint
from bellwether.trainer import config as c
from bellwether.trainer.metrics import read


def text(workspace: Path, name: str, **changes: Any) -> dict[str, Any]:
    """The config of a short run of BERT-tiny, with changes to its sections."""
    raw: dict[str, Any] = {
        "name": name,
        "runs": str(workspace / "runs"),
        "duration": "8 steps",
        "model": {"kind": "bert", "size": "tiny", "dropout": 0.1},
        "data": {
            "kind": "text", "source": str(workspace / "corpus.txt"), "vocabulary_size": 200, "sequence_length": 16,
            "cache": str(workspace / "cache"), "workers": 0,
            # The rates at which each rule trains were chosen on such batches.
            "packing": "stream", "random_tokens": "all",
        },
        "batch": {"global": 16, "micro": 2},
        "optimizer": {"lr": 1e-2},
        "schedule": {"warmup": 0.25},
        "log": {"every": "1 steps", "trackers": [], "report": False},  # the report takes longer than these runs
        "evaluate": {"limit": 10},
        "engine": {"stage": 2},
    }  # fmt: skip
    return merged(raw, changes)


def images(workspace: Path, name: str, **changes: Any) -> dict[str, Any]:
    """The config of a short run of a ResNet on digits, with changes to its sections."""
    raw = text(workspace, name)
    raw["model"] = {"kind": "cifar-resnet", "depth": 8}
    raw["data"] = {
        "kind": "images", "source": "digits", "size": 8, "mean": [0.3], "std": [0.3], "workers": 0, "cache": str(workspace / "cache"),
    }  # fmt: skip
    return merged(raw, changes)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return {**base, **{k: {**base[k], **v} if isinstance(v, dict) and k in base else v for k, v in over.items()}}


def run_config(raw: dict[str, Any]) -> None:
    """Train as configured. Called by all ranks together."""
    from bellwether.trainer import run
    from bellwether.trainer.distributed import World

    world = World(torch.distributed.get_rank(), torch.distributed.get_world_size(), 0, torch.device("cpu"))
    run.train(c.validate(raw), world)


def losses(raw: dict[str, Any]) -> list[float]:
    return [line["loss"] for line in train_lines(raw)]


def train_lines(raw: dict[str, Any]) -> list[dict[str, Any]]:
    return read(Path(raw["runs"]) / raw["name"]).train


def last(raw: dict[str, Any]) -> Path:
    path = checkpoint.newest(Path(raw["runs"]) / raw["name"] / "checkpoints")
    assert path is not None
    return path


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return {f"{file.name}:{k}": v for file in sorted(path.glob("*.safetensors")) for k, v in load_file(file).items()}


def weights(path: Path, wanted: str = "weight") -> dict[str, np.ndarray]:
    """Whole fp32 weights of a checkpoint, or another kind of tensor by parameter name."""
    slices: dict[str, list[tuple[int, np.ndarray]]] = {}
    for key, value in tensors(path).items():
        kind, name, start = key.split(":", 1)[1].split("|")
        if kind == wanted:
            slices.setdefault(name, []).append((int(start), value.numpy()))
    return {name: np.concatenate([v for _, v in sorted(parts, key=lambda p: p[0])]) for name, parts in slices.items()}
