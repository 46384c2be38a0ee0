"""A run directory's names, and how its files come there, also for those who do not train: no heavy import."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bellwether.trainer.config import Config

FINISHED = "finished.json"
HEARTBEAT = Path("logs", "heartbeat.json")
RANK0_LOG = Path("logs", "rank0.log")
_CHECKPOINT = re.compile(r"^step-\d{8}$")


def directory(config: Config) -> Path:
    """Where a run lies."""
    return Path(config.runs).expanduser() / config.name


def checkpoints(root: Path) -> list[Path]:
    """The published checkpoints, the oldest first."""
    return sorted(p for p in root.glob("step-*") if _CHECKPOINT.match(p.name)) if root.is_dir() else []


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what then takes the place of ``path``: nobody reads half a file, and a failure leaves the old one."""
    # A name of its own: a user may write a report while the run does.
    partial = path.with_name(f"{path.name}.partial-{socket.gethostname()}-{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def publish(path: Path, text: str) -> None:
    """`replacing` by a text, in UTF-8."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
