"""Experiment trackers by name (``log.trackers``): TensorBoard, Weights & Biases, MLflow and trackio, through accelerate's classes.

Only the rank that writes the metrics opens them. Where the data goes, and whether a tracker works offline, is set by its
own environment variables (``WANDB_MODE=offline``, ``MLFLOW_TRACKING_URI``, ``TRACKIO_DIR``, ...). The ids of a run in its
trackers are kept in ``<run>/logs/trackers.json``, so that a resumed run resumes them.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bellwether.trainer import run_paths
from bellwether.trainer.config import ConfigError

LOGS = "logs"
IDS = Path(LOGS, "trackers.json")
TENSORBOARD = Path(LOGS, "tensorboard")
KEY = "log.trackers"
PROJECT = "bellwether"  #: of a run in Weights & Biases and trackio, and its experiment in MLflow

_log = logging.getLogger(__name__)


def check_installed(names: Sequence[str]) -> None:
    """Check that the packages of the trackers are installed.

    Raises:
        ConfigError: for the first that is not, with the command that installs it.
    """
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(KEY, name, "is not installed", f"pip install {name}, or remove it from {KEY}")


class Trackers:
    """The open trackers of a run.

    Args:
        run: the run directory.
        names: of the trackers, see `OPEN`.
        name: of the run in the trackers.
        config: of the run; the trackers but TensorBoard get it, as key paths and values.
        step: the run resumes after it.

    Raises:
        ConfigError: if a tracker is not installed or cannot start.
    """

    def __init__(self, run: Path, names: Sequence[str], name: str, config: Mapping[str, Any], step: int) -> None:
        check_installed(names)
        self._open: dict[str, Any] = {}
        path = run / IDS
        ids: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for tracker_name in dict.fromkeys(names):
            try:
                tracker, run_id = _start(tracker_name, TrackerLaunch(run, name, step, ids.get(tracker_name)), config)
            except Exception as error:
                self.close()
                again = f"; delete {path} to begin a new run there" if tracker_name in ids else ""
                raise ConfigError(
                    KEY, tracker_name, f"cannot start: {error}", f"fix it, or remove {tracker_name}{again}"
                ) from error
            self._open[tracker_name] = tracker
            ids |= {tracker_name: run_id} if run_id is not None else {}
        if ids:
            path.parent.mkdir(exist_ok=True)
            run_paths.publish(path, json.dumps(ids))

    def log(self, values: Mapping[str, float], step: int, again: bool = False) -> None:
        """Send values to every tracker. A tracker that fails is closed with a warning: it must not end the run.

        Args:
            again: whether an earlier launch has sent the values of this step, which are the same. TensorBoard hides those that
                it resumes before; the others would keep both.
        """
        for name, tracker in list(self._open.items()):
            if again and name != "tensorboard":
                continue
            try:
                tracker.log(dict(values), step=step)
            except Exception as error:
                _log.warning("%s failed at step %d and gets no more values: %s", name, step, error)
                del self._open[name]

    def close(self) -> None:
        for name, tracker in self._open.items():
            try:
                tracker.finish()
            except Exception as error:
                _log.warning("%s could not be closed: %s", name, error)
        self._open = {}


@dataclass(frozen=True)
class TrackerLaunch:
    """What a tracker has to know about this launch of a run.

    Attributes:
        run: the run directory.
        name: of the run.
        step: the run resumes after it.
        id: of the run in the tracker, from an earlier launch; None if there was none.
    """

    run: Path
    name: str
    step: int
    id: str | None


def _start(name: str, launch: TrackerLaunch, config: Mapping[str, Any]) -> tuple[Any, str | None]:
    """Start one tracker; returns it and the run's id in it, or None if the run directory is enough to resume it."""
    from accelerate import tracking

    # accelerate's logger and trackers ask its process state, which would detect the process group a second time.
    tracking.logger = _Logger(logging.getLogger(tracking.__name__), {})
    tracker, identify = OPEN[name](tracking, launch)
    tracker.main_process_only = False
    tracker.start()
    # MLflow refuses to change a parameter, and TensorBoard would show the config as a run of its own.
    if name in ("wandb", "trackio") or (name == "mlflow" and launch.id is None):
        tracker.store_init_configuration(dict(_flat(config)))
    return tracker, identify(tracker.tracker)


def _tensorboard(tracking: Any, launch: TrackerLaunch) -> tuple[Any, Callable[[Any], Any]]:
    # TensorBoard hides the values that an earlier launch logged beyond the step from which this one resumes.
    folder = launch.run / TENSORBOARD
    if launch.step == 0:
        # Of launches that were killed before the first checkpoint: the run starts again. TensorBoard itself would hide them.
        for leftover in folder.glob("events.out.tfevents.*"):
            leftover.unlink()
    tracker = tracking.TensorBoardTracker(folder.name, str(folder.parent), purge_step=launch.step + 1)
    return tracker, lambda writer: None


def _wandb(tracking: Any, launch: TrackerLaunch) -> tuple[Any, Callable[[Any], Any]]:
    folder = os.environ.get("WANDB_DIR") or str(launch.run / LOGS)
    Path(folder).mkdir(parents=True, exist_ok=True)
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    tracker = tracking.WandBTracker(project, name=launch.name, dir=folder, id=launch.id, resume="allow")
    return tracker, lambda run: run.id


def _mlflow(tracking: Any, launch: TrackerLaunch) -> tuple[Any, Callable[[Any], Any]]:
    return tracking.MLflowTracker(PROJECT, run_name=launch.name, run_id=launch.id), lambda run: run.info.run_id


def _trackio(tracking: Any, launch: TrackerLaunch) -> tuple[Any, Callable[[Any], Any]]:
    # trackio finds a run by its name, which two run directories may share.
    name = launch.id or f"{launch.name}-{secrets.token_hex(3)}"
    return tracking.TrackioTracker(PROJECT, name=name, resume="allow"), lambda run: name


#: name -> (accelerate.tracking, launch) -> (a tracker that is not started, its object -> the run's id)
OPEN: dict[str, Callable[[Any, TrackerLaunch], tuple[Any, Callable[[Any], Any]]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}


class _Logger(logging.LoggerAdapter):
    """A logger with the one method that accelerate's has beyond the standard ones."""

    def warning_once(self, message: str) -> None:
        self.warning(message)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(key path, value) of a nested mapping."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value if isinstance(value, bool | int | float | str) or value is None else str(value)
