"""What lies in a sweep's directory, and the part of its ``sweep.yaml`` that readers of measurements need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from launcher.sweep.table import Target
from trainer.config import ConfigError

SWEEP = "sweep.yaml"
TABLE = "measurements.csv"
TARGET = "--target"


def is_sweep(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in (SWEEP, TABLE))


def settings(directory: Path) -> Mapping[str, Any]:
    """The keys of ``sweep.yaml``; none where there is no such file.

    Raises:
        ConfigError: if it holds no mapping.
    """
    path = directory / SWEEP
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(SWEEP, str(path), f"cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(raw or {}, dict):
        raise ConfigError(SWEEP, str(path), "holds no mapping", "write key: value lines")
    return raw or {}


def target(given: str | None, found: Mapping[str, Any]) -> Target | None:
    """The target given on the command line, else the sweep's own; ``accuracy`` stands for ``val/accuracy``.

    Raises:
        ConfigError: if it is no comparison.
    """
    text = given if given is not None else found.get("target")
    if text is None:
        return None
    parsed = Target.parse(str(text), TARGET if given is not None else f"{SWEEP}: target")
    return parsed if "/" in parsed.metric else replace(parsed, metric=f"val/{parsed.metric}")
