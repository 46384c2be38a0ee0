"""The run directory: created once, found again after every restart, bound to one config and locked by one process group."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from bellwether.trainer import checkpoint, existing_run, run_lock, run_paths
from bellwether.trainer.config import Config, ConfigError, Target, to_yaml
from bellwether.trainer.run_lock import RunLock
from bellwether.version import code_version

_SAME_JOB_TIMEOUT = (
    run_lock.EXPIRE_SECONDS + 60
)  # seconds to wait for a lock that an earlier attempt of the same job holds


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
    existing_run.check(config)
    run.mkdir(parents=True, exist_ok=True)
    lock = _lock(run)
    # Before anything else: a process that is killed in between leaves what the next one knows as its own.
    run_paths.publish(run / existing_run.CONFIG, f"{existing_run.HEAD}{code_version()}\n{to_yaml(config)}")
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "logs").mkdir(exist_ok=True)
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
