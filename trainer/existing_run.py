"""Whether a config may train in its run directory. Imports are light: launchers ask before they start or submit anything."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import yaml

from bellwether.trainer import run_lock, run_paths
from bellwether.trainer.config import Config, ConfigError, ConfigErrors, dump, validate
from bellwether.trainer.config.renamed import convert

CONFIG = "config.yaml"
HEAD = "# bellwether "  #: how the first line of ours begins
_OWN = ("logs", run_lock.FLOCK)

# Keys that may change when a run resumes: who computes which part, how often something is written, and where it stops.
CHANGEABLE = (
    "resume",
    "runs",
    "stop_after",
    "divergence",
    "engine",
    "checkpoint",
    "evaluate",
    "log",
    "trajectory",
    "batch.micro",
    "data.workers",
    "data.cache",
    "data.retry",
    "data.max_unknown",
    "data.max_overlap",
    "data.allow_empty_classes",
)


# Mappings whose first entry counts: the pattern that matches first, the held-out set that decides.
_ORDERED = ("optimizer.lr_scale", "data.validation")


def check(config: Config) -> None:
    """Check that the run directory of a config is its own, or holds no run yet.

    Raises:
        ConfigErrors: if the directory holds a run with another config, with a line for each changed key.
        ConfigError: if it holds something else, or a run although ``resume: never`` is set.
    """
    run = run_paths.directory(config)
    text = _stored(run)
    if not text.startswith(HEAD) and run.exists() and not all(_is_own(path) for path in run.iterdir()):
        raise ConfigError(
            "name", config.name, f"{run} exists and is no run directory of Bellwether", "choose another name=..."
        )
    # The config of a run that failed before its first step may be corrected under the same name.
    if text and ((run / "metrics.jsonl").exists() or run_paths.checkpoints(run / "checkpoints")):
        _check_same_config(config, run, text)
        if config.resume == "never":
            advice = "choose another name=..., or write resume=auto to resume it"
            raise ConfigError("resume", "never", f"{run} already holds a run", advice)


def check_early(config: Config) -> None:
    """`check` where a run is started or submitted. A directory that cannot be read from here is left to the run itself.

    Raises:
        ConfigErrors, ConfigError: as `check`.
    """
    with contextlib.suppress(OSError):
        check(config)


def is_complete(config: Config) -> bool:
    """Whether the same config has been trained to its end, and its results are there: nothing is left to do."""
    run = run_paths.directory(config)
    results = {"export": config.checkpoint.export, "report.html": config.log.report, run_paths.FINISHED: True}
    if not all((run / name).exists() for name, is_due in results.items() if is_due):
        return False
    try:
        return bool(yaml.safe_load(_stored(run)) == dump(config))
    except yaml.YAMLError:
        return False


def _stored(run: Path) -> str:
    file = run / CONFIG
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _is_own(path: Path) -> bool:
    return path.name in _OWN or path.name.startswith(run_lock.LEASE) or run_paths.is_partial(path, CONFIG)


def _check_same_config(config: Config, run: Path, text: str) -> None:
    """Refuse a config that differs from the stored one in a key that must not change."""
    try:
        old, new = _flat(_upgrade(dict(yaml.safe_load(text)))), _flat(dump(config))
    except (yaml.YAMLError, TypeError, ValueError):
        advice = "restore it, or choose another name=..."
        raise ConfigError("name", config.name, f"config.yaml in {run} is damaged", advice) from None
    # Versions before 2026-11-30 wrote the default of every optimizer that they had, where today's config has null.
    if new.get("optimizer.betas") is None and old.get("optimizer.betas") == [0.9, 0.999]:
        old["optimizer.betas"] = None
    errors = [
        ConfigError(
            key,
            new.get(key),
            f"{run} was made with {old.get(key)!r}",
            "set it back to resume, or choose another name=...",
        )
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    if errors:
        raise ConfigErrors(errors)


def _upgrade(raw: dict[str, Any]) -> dict[str, Any]:
    """An older version's config with newer keys at their defaults, which is how it was trained."""
    for section in (raw, *(raw.get("phases") or [])):
        schedule = section.get("schedule")
        # Versions before 2026-11-30 had no other decay, also for the recipes that have one now.
        if isinstance(schedule, dict) and "decay_from" not in schedule:
            section["schedule"] = {**schedule, "decay_from": "warmup", "warmup_power": 1.0, "interval": None}
    data = raw.get("data")
    if isinstance(data, dict) and data.get("kind") == "text":
        raw["data"] = {"packing": "stream", "random_tokens": "all", **data}
    try:
        return dump(validate(raw))
    except ConfigErrors:
        return convert(raw)  # the keys that differ are then named


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves by key path, without those that may change (in phases too)."""
    key = re.sub(r"^phases\[\d+\]\.", "", path)
    if key in _ORDERED and isinstance(value, dict):
        return {
            path: [
                f"{name}: {each:g}" if isinstance(each, float) else f"{name}: {each}" for name, each in value.items()
            ]
        }
    if any(key == changeable or key.startswith(f"{changeable}.") for changeable in CHANGEABLE):
        return {}
    if isinstance(value, dict) and (value or not path):
        return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{path}.{name}".lstrip(".")).items()}
    if path == "phases":
        return {k: v for i, inner in enumerate(value) for k, v in _flat(inner, f"phases[{i}]").items()}
    return {path: value}
