"""Reads measurements in any layout, and the keys of a sweep's ``sweep.yaml`` that their analysis needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from bellwether.experiments.analysis import shallue
from bellwether.experiments.analysis.outcome import EarlyStop
from bellwether.experiments.sweep import measurements, spec
from bellwether.experiments.sweep.measurements import Target, Trial
from bellwether.experiments.sweep.study import MEASUREMENTS, SWEEP, open_study
from bellwether.trainer.config import ConfigError, Duration

TARGET = "--target"
_TRIAL_FILES = ("*.json", "*.failed", "*/metrics.jsonl")  # below trials/; they change while a sweep runs


def is_sweep(path: Path) -> bool:
    """Whether a path is the directory of a sweep."""
    return path.is_dir() and any((path / name).is_file() for name in (SWEEP, MEASUREMENTS))


def settings(directory: Path) -> Mapping[str, Any]:
    """The content of ``sweep.yaml``; empty if there is no such file.

    Raises:
        ConfigError: if it is not a mapping.
    """
    path = directory / SWEEP
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(SWEEP, str(path), f"cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(raw or {}, dict):
        raise ConfigError(SWEEP, str(path), "is not a mapping", "write key: value lines")
    return raw or {}


def target(given: str | None, sweep: Mapping[str, Any]) -> Target | None:
    """The target from the command line, else that of the sweep; ``accuracy`` stands for ``val/accuracy``.

    Raises:
        ConfigError: if it is not a comparison.
    """
    text = given if given is not None else sweep.get("target")
    if text is None:
        return None
    parsed = Target.parse(str(text), TARGET if given is not None else f"{SWEEP}: target")
    return parsed if "/" in parsed.metric else replace(parsed, metric=f"val/{parsed.metric}")


def early_stop(sweep: Mapping[str, Any]) -> EarlyStop | None:
    """The target at which the sweep stops its trials; None: only at the end of their budget."""
    goal = target(None, sweep)
    if goal is None:
        return None
    base, variants = sweep.get("base") or {}, sweep.get("optimizers") or {}
    budgets: dict[str, Duration] = {}
    if not base.get("phases"):
        for name, variant in variants.items():
            with suppress(ValueError):
                budgets[name] = Duration.parse((variant.get("set") or {}).get("duration", base.get("duration")))
    return EarlyStop(goal, budgets)


def check_measured(goal: Target, trials: Sequence[Trial]) -> None:
    """Check that a target can be compared with measurements: its metric was measured, and its value is possible.

    Raises:
        ConfigError: naming the metrics that were measured, or what is wrong with the target.
    """
    rows = [row for trial in trials for row in trial.measurements]
    measured = {name for row in rows for name in row} - {"step", "samples"}
    if measured and goal.metric not in measured:
        advice = f"they have {', '.join(sorted(measured))}"
        raise ConfigError(TARGET, str(goal), f"no run measured {goal.metric}", advice)
    # Tables of other software may hold percentages.
    percent = "accuracy" in goal.metric and any(row.get(goal.metric, 0) > 1 for row in rows)
    if goal.fault and not percent:
        raise ConfigError(TARGET, str(goal), *goal.fault)


def default_metric(sweep: Mapping[str, Any]) -> Target | None:
    """The metric of a sweep without a target, as a target that no value satisfies; None: ``sweep.yaml`` does not tell."""
    base = sweep.get("base")
    data = base.get("data") if isinstance(base, dict) else None
    if not isinstance(data, dict) or "kind" not in data:
        return None
    name, at_least = spec.default_metric(str(data["kind"]))
    return Target(name, math.nan, at_least)


def is_measured(path: Path) -> bool:
    """Whether `read` can read a path: a sweep's directory, a file, or a directory in the layout of Shallue et al."""
    return path.is_file() or is_sweep(path) or next(path.rglob("study.json"), None) is not None


def read(path: str | Path, key: str = "FILE") -> list[Trial]:
    """Read the trials of a sweep's directory, a table (.csv, .parquet), or a directory in Shallue et al.'s layout.

    Args:
        key: name of the command line argument, for errors.

    Raises:
        ConfigError: if the path is none of these, or cannot be read.
    """
    path = Path(path)
    if is_sweep(path):
        return _trials(path, key)
    return shallue.read(path, key) if path.is_dir() else measurements.read(path, key)


def _trials(directory: Path, key: str) -> list[Trial]:
    """The trials of a sweep: from the table, or from their run directories if one of them is newer than the table."""
    file, trials_dir = directory / MEASUREMENTS, directory / "trials"
    changed = [path.stat().st_mtime for pattern in _TRIAL_FILES for path in trials_dir.glob(pattern)]
    if any(trials_dir.glob("*.json")) and not (file.is_file() and file.stat().st_mtime >= max(changed)):
        return open_study(directory).collect()
    if not file.is_file():
        problem = f"holds no {MEASUREMENTS}: nothing has been measured yet"
        raise ConfigError(key, str(directory), problem, "try again when the first trial has started")
    return measurements.read(file, key)
