"""Reads slices of parameters, and buffers, from the files of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from bellwether.trainer.checkpoint.slices import SliceIndex
from bellwether.trainer.config import ConfigError


class Files:
    """Reads slices of the tensors of a checkpoint. Files are opened when they are first needed: there may be thousands."""

    def __init__(self, path: Path, index: SliceIndex) -> None:
        self.path, self.index = path, index
        self._open: dict[str, Any] = {}

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
        for first, length, file in self.index.overlapping(name, start, end):
            left, right = max(start, first), min(end, first + length)
            if left < right:
                stored = self.file(file).get_slice(f"{kind}|{name}|{first}")
                into[left - start : right - start].copy_(stored[left - first : right - first])
                filled += right - left
        if filled != into.numel():
            problem = f"contains {filled} of {into.numel()} elements of {kind} {name}"
            raise ConfigError("resume", str(self.path), problem, "resume from another checkpoint")

    def read_all(self, kind: str, slices: Iterable[tuple[str, int, Tensor]]) -> None:
        """`read` for each slice."""
        for name, start, into in slices:
            self.read(kind, name, start, into)

    def read_whole(self, kind: str, name: str, into: Tensor) -> None:
        """Fills ``into`` with a tensor of a parameter that is not cut as the parameter is.

        Raises:
            ConfigError: if the checkpoint does not contain it, in this size.
        """
        for _, _, file in self.index.overlapping(name, 0, 1):
            key = f"{kind}|{name}|0"
            if key in self.file(file).keys() and (saved := self.file(file).get_tensor(key)).numel() == into.numel():  # noqa: SIM118  (not a dict)
                into.copy_(saved.view(into.shape))
                return
        problem = f"does not contain {kind} of {name}, of {into.numel()} elements"
        advice = "set the optimizer's options back, or start a new run with another name=..."
        raise ConfigError("resume", str(self.path), problem, advice)

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
