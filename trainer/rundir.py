"""The run directory: made once, found again after every restart, never shared by two different runs."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import yaml

from bellwether.trainer import checkpoint, run_paths
from bellwether.trainer.config import Config, ConfigError, ConfigErrors, Target, dump, to_yaml, validate
from bellwether.trainer.config.renamed import convert
from bellwether.version import code_version

LOCK = ".lock"
_HEAD = "# bellwether "
_OWN_LOCK = 180  # seconds to wait for a lock that an earlier attempt of the same job holds

# What may change when a run goes on: who computes which part, how often something is written, and where it stops.
FREE = (
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
)


def prepare(config: Config) -> tuple[Path, IO[str] | None]:
    """Make the run directory, or check that it belongs to this config. Writes ``config.yaml``.

    Returns:
        the directory, and a lock on it that holds for as long as it is open (None where the file system has none).

    Raises:
        ConfigErrors: if the directory holds another run, with a line for each key that differs.
        ConfigError: if it holds something else, or a run that ``resume: never`` must not go on with, or if another
            process trains in it.
    """
    run = run_paths.directory(config)
    try:
        return run, _prepare(config, run)
    except OSError as error:
        key, value = ("runs", config.runs) if not Path(config.runs).expanduser().is_dir() else ("name", config.name)
        problem = f"{error.filename or run} cannot be written: {error.strerror}"
        raise ConfigError(key, value, problem, "name a directory that can") from error


def _prepare(config: Config, run: Path) -> IO[str] | None:
    file = run / "config.yaml"
    text = file.read_text(errors="replace") if file.is_file() else ""
    if (
        not text.startswith(_HEAD)
        and run.exists()
        and any(p.name not in ("logs", LOCK) and not p.name.startswith(f"{file.name}.partial") for p in run.iterdir())
    ):
        raise ConfigError(
            "name", config.name, f"{run} exists and holds no run of Bellwether", "choose another name=..."
        )
    # A run that was refused before its first step may be mended under the same name.
    if text and ((run / "metrics.jsonl").exists() or checkpoint.newest(run / "checkpoints") is not None):
        _same_run(config, run, text)
        if config.resume == "never":
            advice = "choose another name=..., or write resume=auto to go on with it"
            raise ConfigError("resume", "never", f"{run} already holds a run", advice)
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "logs").mkdir(exist_ok=True)
    held = _lock(run)
    run_paths.publish(file, f"{_HEAD}{code_version()}\n{to_yaml(config)}")
    return held


def start_from(config: Config, run: Path, own: Path | None) -> Path | None:
    """The checkpoint to begin with: the run's ``own`` newest, else the one that ``resume`` names, else none.

    A run that is started again and again with ``resume: PATH`` begins there once and then goes on with its own.

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
        raise ConfigError("resume", config.resume, f"this run stands at {own.name} already", advice)
    return own or path


def mark_finished(run: Path, place: checkpoint.Position, reached: Target | None = None) -> None:
    """Say to who starts jobs again and again that nothing is left to do: training, export and report are whole.

    Args:
        reached: the target, where it was that which ended the run.
    """
    told = {**asdict(place), "target": None if reached is None else str(reached), "time": round(time.time(), 3)}
    run_paths.publish(run / run_paths.FINISHED, json.dumps(told) + "\n")


def has_reached(run: Path, place: checkpoint.Position, target: Target | None) -> bool:
    """Whether the run stands where it reached this target. A mark that no longer holds is taken away."""
    try:
        told = json.loads((run / run_paths.FINISHED).read_text())
    except FileNotFoundError:
        return False
    except ValueError:
        told = {}
    here = told.get("step") == place.step
    if here and target is not None and told.get("target") == str(target):
        return True
    if told.get("target") is not None:
        (run / run_paths.FINISHED).unlink()  # the target was moved, or taken out: there is more to do
    return False


def _lock(run: Path) -> IO[str] | None:
    file = open(run / LOCK, "a+")  # noqa: SIM115  (held until the process ends)
    job = f"job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    deadline = time.monotonic() + _OWN_LOCK
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            # An attempt of the same job that SLURM has given up, on a node that it does not reach, may take its time to end.
            if job and holder.endswith(f", {job}") and time.monotonic() < deadline:
                time.sleep(1)
                continue
            problem = f"another process trains in {run} ({holder or 'it did not say which'})"
            raise ConfigError("name", run.name, problem, "wait for it, end it, or choose another name=...") from None
        except OSError:
            return None  # some parallel file systems are mounted without locks
    file.truncate(0)
    file.write(", ".join(filter(None, [f"process {os.getpid()} on {socket.gethostname()}", job])) + "\n")
    file.flush()
    return file


def _same_run(config: Config, run: Path, text: str) -> None:
    try:
        old, new = _flat(_as_now(dict(yaml.safe_load(text)))), _flat(dump(config))
    except (yaml.YAMLError, TypeError, ValueError):
        advice = "bring it back as it was, or choose another name=..."
        raise ConfigError("name", config.name, f"config.yaml in {run} is damaged", advice) from None
    errors = [
        ConfigError(
            key,
            new.get(key),
            f"{run} was made with {old.get(key)!r}",
            "set it back to go on, or choose another name=...",
        )
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    if errors:
        raise ConfigErrors(errors)


def _as_now(raw: dict[str, Any]) -> dict[str, Any]:
    """An older version's config with the keys that came later at their defaults, which is how it was trained."""
    try:
        return dump(validate(raw))
    except ConfigErrors:
        return convert(raw)  # what no longer fits is told key by key


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """Leaves by dotted path, without those that are free to change (in phases too)."""
    key = place.split("].", 1)[-1]
    if any(key == free or key.startswith(f"{free}.") for free in FREE):
        return {}
    if isinstance(value, dict) and (value or not place):
        return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{place}.{name}".lstrip(".")).items()}
    if place == "phases":
        return {k: v for i, inner in enumerate(value) for k, v in _flat(inner, f"phases[{i}]").items()}
    return {place: value}
