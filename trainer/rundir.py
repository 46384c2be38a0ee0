"""The run directory: created once, found again after every restart, bound to one config and locked by one process group."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from bellwether.trainer import checkpoint, run_lock, run_paths
from bellwether.trainer.config import Config, ConfigError, ConfigErrors, Target, dump, to_yaml, validate
from bellwether.trainer.config.renamed import convert
from bellwether.trainer.run_lock import RunLock
from bellwether.version import code_version

_HEAD = "# bellwether "
_OWN = ("logs", run_lock.FLOCK)
_SAME_JOB_TIMEOUT = (
    run_lock.EXPIRE_SECONDS + 60
)  # seconds to wait for a lock that an earlier attempt of the same job holds

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


def prepare(config: Config) -> tuple[Path, RunLock]:
    """Create the run directory, or check that it belongs to this config. Writes ``config.yaml``.

    Returns:
        the directory, and its lock, which is held until it is closed.

    Raises:
        ConfigErrors: if the directory holds a run with another config, with a line for each changed key.
        ConfigError: if it holds something else, or a run although ``resume: never`` is set, or if another process trains in it.
    """
    run = run_paths.directory(config)
    try:
        return run, _prepare(config, run)
    except OSError as error:
        key, value = ("runs", config.runs) if not Path(config.runs).expanduser().is_dir() else ("name", config.name)
        problem = f"{error.filename or run} cannot be written: {error.strerror}"
        raise ConfigError(key, value, problem, "name a directory that is writable") from error


def _prepare(config: Config, run: Path) -> RunLock:
    file = run / "config.yaml"
    text = file.read_text(errors="replace") if file.is_file() else ""
    if (
        not text.startswith(_HEAD)
        and run.exists()
        and any(
            p.name not in _OWN and not p.name.startswith((run_lock.LEASE, f"{file.name}.partial"))
            for p in run.iterdir()
        )
    ):
        raise ConfigError(
            "name", config.name, f"{run} exists and is no run directory of Bellwether", "choose another name=..."
        )
    # The config of a run that failed before its first step may be corrected under the same name.
    if text and ((run / "metrics.jsonl").exists() or checkpoint.newest(run / "checkpoints") is not None):
        _check_same_config(config, run, text)
        if config.resume == "never":
            advice = "choose another name=..., or write resume=auto to resume it"
            raise ConfigError("resume", "never", f"{run} already holds a run", advice)
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "logs").mkdir(exist_ok=True)
    lock = _lock(run)
    run_paths.publish(file, f"{_HEAD}{code_version()}\n{to_yaml(config)}")
    return lock


def start_from(config: Config, run: Path, own: Path | None) -> Path | None:
    """The checkpoint to start from: the run's ``own`` newest one, else the one that ``resume`` names, else none.

    A run with ``resume: PATH`` starts there once; after a restart it resumes from its own newest checkpoint.

    Raises:
        ConfigError: if PATH is no checkpoint, or an older one of this run.
    """
    if config.resume in ("auto", "never"):
        return own
    path = Path(config.resume).expanduser()
    path = checkpoint.newest(path / "checkpoints") or checkpoint.newest(path) or path
    if not (path / "manifest.json").is_file():
        advice = "write auto, never, or a checkpoint's directory"
        raise ConfigError("resume", config.resume, "no checkpoint there", advice)
    if own is not None and path.resolve() != own.resolve() and path.resolve().parent == own.resolve().parent:
        advice = "to go back, rename the later checkpoints, or choose another name=..."
        raise ConfigError("resume", config.resume, f"this run is at {own.name} already", advice)
    return own or path


def mark_finished(run: Path, position: checkpoint.Position, reached: Target | None = None) -> None:
    """Write ``finished.json``, by which launchers know that training, export and report are complete.

    Args:
        reached: the target, if the run ended because it was reached.
    """
    content = {**asdict(position), "target": None if reached is None else str(reached), "time": round(time.time(), 3)}
    run_paths.publish(run / run_paths.FINISHED, json.dumps(content) + "\n")


def has_reached(run: Path, position: checkpoint.Position, target: Target | None) -> bool:
    """Whether the run ended here because it reached this target. A ``finished.json`` for another target is deleted."""
    try:
        finished = json.loads((run / run_paths.FINISHED).read_text())
    except FileNotFoundError:
        return False
    except ValueError:
        finished = {}
    here = finished.get("step") == position.step
    if here and target is not None and finished.get("target") == str(target):
        return True
    if finished.get("target") is not None:
        (run / run_paths.FINISHED).unlink()  # the target was changed or removed: there is more to train
    return False


def _lock(run: Path) -> RunLock:
    """Lock the run directory, and wait for those who are about to leave it.

    Raises:
        ConfigError: if another process trains there.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    deadline = time.monotonic() + _SAME_JOB_TIMEOUT
    while True:
        try:
            return run_lock.acquire(run)
        except run_lock.Busy as error:
            # SLURM may requeue a job while an attempt on an unreachable node has not ended yet.
            if job and run_lock.job_of(str(error)) == job and time.monotonic() < deadline:
                time.sleep(1)
                continue
            problem = f"another process trains in {run} ({error or 'it is not known which'})"
            raise ConfigError("name", run.name, problem, "wait for it, end it, or choose another name=...") from None


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
    if key == "optimizer.lr_scale" and isinstance(
        value, dict
    ):  # the first pattern that matches holds: the order counts
        return {path: [f"{pattern}: {factor:g}" for pattern, factor in value.items()]}
    if any(key == changeable or key.startswith(f"{changeable}.") for changeable in CHANGEABLE):
        return {}
    if isinstance(value, dict) and (value or not path):
        return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{path}.{name}".lstrip(".")).items()}
    if path == "phases":
        return {k: v for i, inner in enumerate(value) for k, v in _flat(inner, f"phases[{i}]").items()}
    return {path: value}
