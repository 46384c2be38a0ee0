"""The checkpoint format on disk: the manifest, and reading parameter slices from many files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from torch import Tensor

from bellwether.trainer import run_paths
from bellwether.trainer.config import ConfigError

FORMAT = 1


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
    parameters: dict[str, dict[str, Any]]  # name -> shape, and step: updates of this parameter
    files: dict[
        str, dict[str, Any]
    ]  # name -> bytes, xxh3_128, and pieces (slices): parameter -> [[start, length], ...]
    loss_scaler: dict[str, float]  # empty unless the precision is fp16
    scalars: dict[str, float] = field(default_factory=dict)  # optimizer state that belongs to no parameter
    noise: dict[str, float] = field(
        default_factory=dict
    )  # state of the gradient noise estimate: optimizers.noise_scale
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
            if raw["format"] != FORMAT:
                raise ConfigError("resume", str(path), f"is of format {raw['format']}, this version reads {FORMAT}")
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


class Files:
    """Reads slices of the tensors of a checkpoint. Files are opened when they are first needed: there may be thousands."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self._open: dict[str, Any] = {}
        self._slices: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for file, about in manifest.files.items():
            for name, slices in about["pieces"].items():
                self._slices[name] += [(start, length, file) for start, length in slices]

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._open.values():
            handle.__exit__(None, None, None)

    def file(self, name: str) -> Any:
        """The open safetensors file of this name."""
        if name not in self._open:
            self._open[name] = safe_open(self.path / name, framework="pt").__enter__()
        return self._open[name]

    def read(self, kind: str, name: str, start: int, into: Tensor) -> None:
        """Fills ``into`` [length] with the elements of a parameter from offset ``start`` on, from as many slices as needed.

        Raises:
            ConfigError: if the checkpoint does not contain all of them.
        """
        end, filled = start + into.numel(), 0
        for first, length, file in self._slices[name]:
            left, right = max(start, first), min(end, first + length)
            if left < right:
                stored = self.file(file).get_slice(f"{kind}|{name}|{first}")
                into[left - start : right - start].copy_(stored[left - first : right - first])
                filled += right - left
        if filled != into.numel():
            problem = f"contains {filled} of {into.numel()} elements of {kind} {name}"
            raise ConfigError("resume", str(self.path), problem, "resume from another checkpoint")

    def buffers(self, file: str) -> dict[str, Tensor]:
        """The buffers in one rank's file, flattened, by name."""
        handle = self.file(file)
        keys = [key for key in handle.keys() if key.startswith("buffer|")]  # noqa: SIM118  (not a dict)
        return {key.split("|")[1]: handle.get_tensor(key) for key in keys}

    def average_buffers(self, files: list[str]) -> dict[str, Tensor]:
        """The mean of the ranks' buffers; for buffers of integers, the value in the first file."""
        sums: dict[str, Tensor] = {}
        for file in files:
            for name, value in self.buffers(file).items():
                if name not in sums:
                    sums[name] = value.double() if value.is_floating_point() else value
                elif value.is_floating_point():
                    sums[name] += value
        return {n: v / len(files) if v.dtype == torch.float64 else v for n, v in sums.items()}
