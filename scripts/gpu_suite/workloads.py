"""The configs that the GPU suite trains, and tiny ones in their place for a dry run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A config with changes to its sections.

    >>> merged({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 4}})
    {'a': {'x': 1, 'y': 4}, 'b': 3}
    """
    found = dict(base)
    for key, value in changes.items():
        found[key] = {**base[key], **value} if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return found


def bert(dry: bool, length: int, micro: int, **changes: Any) -> dict[str, Any]:
    """BERT-large as configs/bert-large-64k.yaml has it, in one micro-batch; dry: BERT-tiny in fp32 at a quarter of the length."""
    config = {
        "model": {"kind": "bert", "size": "tiny" if dry else "large", "dropout": 0.1},
        "data": {"kind": "text", "source": "none.txt", "vocabulary_size": 1000 if dry else 30522,
                 "sequence_length": length // 4 if dry else length},
        "batch": {"global": 4 if dry else micro, "micro": 4 if dry else micro},
        "optimizer": {"name": "lamb", "lr": 1e-4, "clip": 1.0},
        "schedule": {"kind": "constant", "warmup": 0},
        "engine": {"stage": 1, "precision": "fp32" if dry else "bf16"},
    }  # fmt: skip
    return merged(config, changes)


def resnet(dry: bool, micro: int, source: str | Path = "none", **changes: Any) -> dict[str, Any]:
    """ResNet-50 as configs/resnet50-imagenet-32k.yaml has it, in one micro-batch; dry: ResNet-18 at 32 pixels in fp32."""
    config = {
        "model": {"kind": "resnet", "depth": 18 if dry else 50},
        "data": {"kind": "images", "source": str(source), "size": 32 if dry else 224, "crop": "resized", "mean": MEAN, "std": STD,
                 "workers": 0 if dry else 12},
        "batch": {"global": 4 if dry else micro, "micro": 4 if dry else micro},
        "optimizer": {"name": "lamb", "lr": 1e-4, "clip": 0},
        "schedule": {"kind": "constant", "warmup": 0},
        "engine": {"stage": 1, "precision": "fp32" if dry else "bf16"},
    }  # fmt: skip
    return merged(config, changes)


def small_bert(dry: bool, **changes: Any) -> dict[str, Any]:
    """A BERT in fp32 without dropout whose steps are compared number by number."""
    config = bert(dry, 64, 16, model={"size": "tiny" if dry else "small", "dropout": 0.0})
    config["data"]["vocabulary_size"] = 500 if dry else 4096
    config["batch"] = {"global": 8 if dry else 64, "micro": 2 if dry else 16}
    config["optimizer"] = {"name": "lamb", "lr": 1e-2, "clip": 1.0}
    config["engine"] = {"stage": 0, "precision": "fp32"}
    return merged(config, changes)
