"""The format on disk: the manifest, and slices out of many files."""

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
    """Where in the run a checkpoint stands."""

    step: int  # updates done since the run's start
    samples: int
    phase: int  # index of the phase that the last update belongs to


@dataclass(frozen=True)
class Manifest:
    """manifest.json."""

    place: Position
    version: str
    world_size: int
    optimizer: str
    data: list[str]  # fingerprint of each phase's data
    states: list[str]  # of the optimizer: exp_avg, ...
    parameters: dict[str, dict[str, Any]]  # name -> shape, and step: updates this parameter has had
    files: dict[str, dict[str, Any]]  # name -> bytes, xxh3_128, and pieces: parameter -> [[start, length], ...]
    loss_scaler: dict[str, float]  # fp16 alone
    scalars: dict[str, float] = field(default_factory=dict)  # of the optimizer: what belongs to no parameter
    noise: dict[str, float] = field(default_factory=dict)  # what is known of the gradient noise: optimizers.noise
    format: int = FORMAT

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Of a checkpoint's directory.

        Raises:
            ConfigError: if there is none, or one that this version does not read.
            OSError: if the file system does not answer.
        """
        advice = "give a checkpoint's directory, step-..."
        try:
            raw = json.loads((path / "manifest.json").read_text())
            if raw["format"] != FORMAT:
                raise ConfigError("resume", str(path), f"is of format {raw['format']}, this version reads {FORMAT}")
            return cls(**{**raw, "place": Position(**raw["place"])})
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError("resume", str(path), f"no readable manifest.json: {error}", advice) from None

    def write(self, path: Path) -> None:
        (path / "manifest.json").write_text(json.dumps(asdict(self)))


def newest(root: Path) -> Path | None:
    """The checkpoint that stands furthest in the run, or None."""
    found = run_paths.checkpoints(root)
    return found[-1] if found else None


def checksum(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def damage(path: Path, manifest: Manifest, names: Sequence[str]) -> tuple[str, str] | None:
    """The first of these files of a checkpoint that is not as it was written, and what is wrong with it.

    Raises:
        OSError: if the file system does not answer, which says nothing about the file.
    """
    for name in names:
        about, file = manifest.files[name], path / name
        if not file.is_file():
            return name, f"{name} is missing"
        if file.stat().st_size != about["bytes"] or checksum(file) != about["xxh3_128"]:
            return name, f"{name} is damaged: its checksum differs"
    return None


class Files:
    """Slices of the tensors in a checkpoint. Opens only the files that are asked for: there may be thousands."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self._open: dict[str, Any] = {}
        self._pieces: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for file, about in manifest.files.items():
            for name, pieces in about["pieces"].items():
                self._pieces[name] += [(start, length, file) for start, length in pieces]

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._open.values():
            handle.__exit__(None, None, None)

    def file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self.path / name, framework="pt").__enter__()
        return self._open[name]

    def read(self, kind: str, name: str, start: int, into: Tensor) -> None:
        """Fill ``into`` [length] with the elements of a parameter from ``start`` on, from as many pieces as it takes."""
        end, filled = start + into.numel(), 0
        for first, length, file in self._pieces[name]:
            left, right = max(start, first), min(end, first + length)
            if left < right:
                piece = self.file(file).get_slice(f"{kind}|{name}|{first}")
                into[left - start : right - start].copy_(piece[left - first : right - first])
                filled += right - left
        if filled != into.numel():
            problem = f"holds {filled} of {into.numel()} elements of {kind} {name}"
            raise ConfigError("resume", str(self.path), problem, "resume from another checkpoint")

    def buffers(self, file: str) -> dict[str, Tensor]:
        """One rank's own buffers, flat, by name."""
        handle = self.file(file)
        keys = [key for key in handle.keys() if key.startswith("buffer|")]  # noqa: SIM118  (not a dict)
        return {key.split("|")[1]: handle.get_tensor(key) for key in keys}

    def agreed_buffers(self, files: list[str]) -> dict[str, Tensor]:
        """What the ranks' buffers agree on: their mean, or the first where it is no fraction."""
        sums: dict[str, Tensor] = {}
        for file in files:
            for name, value in self.buffers(file).items():
                if name not in sums:
                    sums[name] = value.double() if value.is_floating_point() else value
                elif value.is_floating_point():
                    sums[name] += value
        return {n: v / len(files) if v.dtype == torch.float64 else v for n, v in sums.items()}
