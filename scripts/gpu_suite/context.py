"""What a part of the GPU suite is given, and where it puts what it has seen."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from bellwether.trainer.distributed import World


@dataclass
class Context:
    """One part in its process. Every row, check and note is written at once, so that a part that is killed keeps them.

    Attributes:
        dry: on the CPU with tiny models, to see that everything runs.
        folder: scratch, empty at the start.
        seconds: the part's time limit.
        file: JSON lines, one for each call of `row`, `check` and `note`.
    """

    dry: bool
    folder: Path
    seconds: float
    file: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until the part is killed."""
        return self.seconds - (time.monotonic() - self.started)

    def row(self, **values: Any) -> None:
        """A row of the part's table; its keys are the columns."""
        self._write({"row": values})

    def check(self, what: str, passed: bool, detail: str = "") -> None:
        """Something that holds or does not; the part has failed if one does not."""
        self._write({"check": {"what": what, "passed": bool(passed), "detail": detail}})

    def note(self, text: str) -> None:
        """A sentence below the table."""
        self._write({"note": text})

    def _write(self, entry: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry, default=str) + "\n")

    @property
    def device(self) -> torch.device:
        import torch

        return torch.device("cpu" if self.dry else "cuda:0")

    @cached_property
    def world(self) -> World:
        """The process group of this process alone, started at the first use: NCCL on a GPU, gloo on the CPU."""
        from bellwether.trainer import distributed

        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            os.environ.pop(name, None)
        return distributed.start("cpu" if self.dry else "cuda")


def read(file: Path) -> list[dict[str, Any]]:
    """What a part has written, without a last line that was cut off."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
