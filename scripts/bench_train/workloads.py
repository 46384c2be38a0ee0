"""What is trained: a config of Bellwether for each workload. The other contestants take model, weights and batches from the same config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.gpu_suite import workloads
from scripts.gpu_suite.resume import text

RANKS = 2


@dataclass(frozen=True)
class Workload:
    """A model and its data.

    Attributes:
        unit: what a sample is called.
        config: of Bellwether, without name and folder of the run.
    """

    name: str
    unit: str
    config: dict[str, Any]

    @property
    def micro(self) -> int:
        return int(self.config["batch"]["micro"])


def workloads_in(folder: Path, quick: bool) -> list[Workload]:
    """The workloads of a run; their data are made in a folder, or found there.

    Args:
        quick: a few rows and one small model of each kind, to see that everything runs.
    """
    corpus, photographs = folder / "corpus.txt", folder / "images"
    if quick and not corpus.exists():
        corpus.write_text(text(2000))
    if not photographs.exists():
        _images(photographs, 64 if quick else 1024)
    shared = {
        "duration": "1000000 steps", "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.0, "eps": 1e-8, "clip": 1.0},
        "schedule": {"kind": "constant", "warmup": 0}, "evaluate": {"limit": 32}, "checkpoint": {"export": False},
        "log": {"trackers": [], "report": False},
    }  # fmt: skip
    words = {
        "kind": "text", "source": str(corpus) if quick else "python-docs", "vocabulary_size": 500 if quick else 4096,
        "sequence_length": 32 if quick else 128, "workers": 0, "max_overlap": 1.0, "cache": str(folder / "cache"),
    }  # fmt: skip
    pixels = {
        "kind": "images", "source": str(photographs), "workers": 0, "mean": workloads.MEAN, "std": workloads.STD, "max_overlap": 1.0,
        "cache": str(folder / "cache"),
    }  # fmt: skip

    def bert(size: str, micro: int) -> dict[str, Any]:
        return {**shared, "model": {"kind": "bert", "size": size, "dropout": 0.0}, "data": words,
                "batch": {"global": RANKS * micro, "micro": micro}}  # fmt: skip

    def resnet(model: dict[str, Any], size: int, micro: int) -> dict[str, Any]:
        data = {**pixels, "size": size, "crop": "resized"}
        return {**shared, "model": model, "data": data, "batch": {"global": RANKS * micro, "micro": micro}}

    small = {"kind": "cifar-resnet", "depth": 8 if quick else 20}
    found = [
        Workload("BERT-tiny", "sequences", bert("tiny", 4 if quick else 16)),
        Workload(
            "ResNet-8" if quick else "ResNet-20, 32 pixels",
            "images",
            resnet(small, 16 if quick else 32, 4 if quick else 32),
        ),
    ]
    if not quick:
        found.insert(1, Workload("BERT-mini", "sequences", bert("mini", 8)))
        found.append(Workload("ResNet-50, 64 pixels", "images", resnet({"kind": "resnet", "depth": 50}, 64, 4)))
    return found


def _images(folder: Path, count: int) -> None:
    """JPEG files of 96 x 96 pixels in folders of ten classes."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for index in range(count):
        small = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        file = folder / f"class-{index % 10}" / f"{index:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC).save(file, quality=90)
