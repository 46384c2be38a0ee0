"""A run directory's names, for those who read it without training: no heavy import."""

from __future__ import annotations

import re
from pathlib import Path

from trainer.config import Config

FINISHED = "finished.json"
HEARTBEAT = Path("logs", "heartbeat.json")
_CHECKPOINT = re.compile(r"^step-\d{8}$")


def directory(config: Config) -> Path:
    """Where a run lies."""
    return Path(config.runs).expanduser() / config.name


def checkpoints(root: Path) -> list[Path]:
    """The published checkpoints, the oldest first."""
    return sorted(p for p in root.glob("step-*") if _CHECKPOINT.match(p.name)) if root.is_dir() else []
