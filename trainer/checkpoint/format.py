"""The checkpoint format on disk: the manifest, and the check of the files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from bellwether.trainer import run_paths
from bellwether.trainer.config import ConfigError

FORMAT = 2
READABLE = (1, 2)  # in format 1 the manifest lists the slices of each file, too


@dataclass(frozen=True)
class Position:
    """A position in a run."""

    step: int  # weight updates since the start of the run
    samples: int  # training samples since the start of the run
    phase: int  # index of the phase that contains the last update


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    position: Position  # ``place`` in the file
    version: str
    world_size: int
    optimizer: str
    data: list[str]  # fingerprint of each phase's data
    states: list[str]  # names of the optimizer's state tensors: exp_avg, ...
    parameters: dict[str, dict[str, Any]]  # name -> shape; step: updates of it; states: its state tensors
    # name -> bytes, xxh3_128; in format 1 also pieces (slices): parameter -> [[start, length], ...]
    files: dict[str, dict[str, Any]]
    loss_scaler: dict[str, float]  # empty unless the precision is fp16
    scalars: dict[str, float] = field(default_factory=dict)  # optimizer state that belongs to no parameter
    noise: dict[str, float] = field(
        default_factory=dict
    )  # state of the gradient noise estimate: optimizers.noise_scale
    frozen: list[str] = field(default_factory=list)  # names of the parameters that are not trained
    # Shape over all streams of each tensor that the model carries from step to step, for data in streams.
    carried: dict[str, list[int]] = field(default_factory=dict)
    first_token: int | None = None  # where in each stream the next step begins; None in checkpoints of older versions
    format: int = FORMAT

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Reads the manifest of a checkpoint directory.

        Raises:
            ConfigError: if it is missing or damaged, or has a format that this version does not read.
            OSError: if the file system cannot be read.
        """
        advice = "give the directory of a checkpoint, step-..."
        try:
            raw = json.loads((path / "manifest.json").read_text())
            if raw["format"] not in READABLE:
                problem = f"is of format {raw['format']}, this version reads up to {FORMAT}"
                raise ConfigError("resume", str(path), problem, "load it with the version that wrote it")
            return cls.from_json(raw)
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError("resume", str(path), f"no readable manifest.json: {error}", advice) from None

    def write(self, path: Path) -> None:
        """Writes manifest.json to a checkpoint directory."""
        (path / "manifest.json").write_text(json.dumps(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """The content of manifest.json."""
        raw = asdict(self)
        return {"place": raw.pop("position"), **raw}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Manifest:
        """The manifest with this content."""
        return cls(position=Position(**raw["place"]), **{key: value for key, value in raw.items() if key != "place"})


def newest(root: Path) -> Path | None:
    """The checkpoint of the latest step, or None."""
    published = run_paths.checkpoints(root)
    return published[-1] if published else None


def checksum(file: Path) -> str:
    """The xxh3_128 checksum of a file."""
    digest = xxhash.xxh3_128()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def damage(path: Path, manifest: Manifest, names: Sequence[str]) -> tuple[str, str] | None:
    """The first of these files of a checkpoint that is missing or damaged, and a description of the problem; or None.

    Raises:
        OSError: if the file system cannot be read, which does not mean that the file is damaged.
    """
    for name in names:
        about, file = manifest.files[name], path / name
        if not file.is_file():
            return name, f"{name} is missing"
        if file.stat().st_size != about["bytes"] or checksum(file) != about["xxh3_128"]:
            return name, f"{name} is damaged: its checksum differs"
    return None
