"""Measurements in whichever layout they lie; what lies in a sweep's directory, and the part of its ``sweep.yaml`` that readers of measurements need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from bellwether.experiments.analysis import shallue
from bellwether.experiments.analysis.aggregate import EarlyStop
from bellwether.experiments.sweep import measurements, spec
from bellwether.experiments.sweep.measurements import Target, Trial
from bellwether.experiments.sweep.study import MEASUREMENTS, SWEEP, open_study
from bellwether.trainer.config import ConfigError, Duration

TARGET = "--target"
_CHANGE = ("*.json", "*.failed", "*/metrics.jsonl")  # what changes below trials/ as a sweep goes on


def is_sweep(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in (SWEEP, MEASUREMENTS))


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


def early_stop(found: Mapping[str, Any]) -> EarlyStop | None:
    """Where the sweep ends its runs; None: at their budget alone."""
    own = target(None, found)
    if own is None:
        return None
    base, variants = found.get("base") or {}, found.get("optimizers") or {}
    budgets: dict[str, Duration] = {}
    if not base.get("phases"):
        for name, variant in variants.items():
            with suppress(ValueError):
                budgets[name] = Duration.parse((variant.get("set") or {}).get("duration", base.get("duration")))
    return EarlyStop(own, budgets)


def check_measured(goal: Target, trials: Sequence[Trial]) -> None:
    """A target of which nothing was measured would be missed by every run, and some others say nothing either.

    Raises:
        ConfigError: naming what was measured, or what is wrong with the target.
    """
    rows = [row for trial in trials for row in trial.measurements]
    there = {name for row in rows for name in row} - {"step", "samples"}
    if there and goal.metric not in there:
        advice = f"they have {', '.join(sorted(there))}"
        raise ConfigError(TARGET, str(goal), f"no run measured {goal.metric}", advice)
    percent = "accuracy" in goal.metric and any(row.get(goal.metric, 0) > 1 for row in rows)  # a table of others
    if goal.fault and not percent:
        raise ConfigError(TARGET, str(goal), *goal.fault)


def default_metric(found: Mapping[str, Any]) -> Target | None:
    """What the sweep compares runs by where it has no target, as a target that no value holds; None: it does not say."""
    base = found.get("base")
    data = base.get("data") if isinstance(base, dict) else None
    if not isinstance(data, dict) or "kind" not in data:
        return None
    name, at_least = spec.default_metric(str(data["kind"]))
    return Target(name, math.nan, at_least)


def is_measured(path: Path) -> bool:
    """Whether `read` would read it: a sweep's directory, a table, or a directory in the layout of Shallue et al."""
    return path.is_file() or is_sweep(path) or next(path.rglob("study.json"), None) is not None


def read(path: str | Path, key: str = "FILE") -> list[Trial]:
    """The trials of a sweep's directory, of a table (.csv, .parquet), or of a directory in Shallue et al.'s layout.

    Raises:
        ConfigError: if it is none of these, or cannot be read.
    """
    path = Path(path)
    if is_sweep(path):
        return _trials(path, key)
    return shallue.read(path, key) if path.is_dir() else measurements.read(path, key)


def _trials(directory: Path, key: str) -> list[Trial]:
    """All that was measured: from the table, or from the runs themselves where one of them is newer than it."""
    file, below = directory / MEASUREMENTS, directory / "trials"
    changed = [path.stat().st_mtime for kind in _CHANGE for path in below.glob(kind)]
    ours = any(below.glob("*.json"))
    if ours and not (file.is_file() and file.stat().st_mtime >= max(changed)):
        return open_study(directory).collect()
    if not file.is_file():
        problem = f"holds no {MEASUREMENTS}: nothing has been measured yet"
        raise ConfigError(key, str(directory), problem, "come back when the first run has begun")
    return measurements.read(file, key)
