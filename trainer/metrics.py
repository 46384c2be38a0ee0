"""The metrics of a run: one JSON object per line in ``<run>/metrics.jsonl``, and experiment trackers.

Every line has ``event`` and ``time`` (unix seconds); ``samples`` and ``step`` count over the whole run.

========== ==================================================================================================
start      version, world_size, device, step, samples, resumed_from (path or null); one per launch; nodes; startup: seconds since the start
           of the process
plan       phases: for each phase a list of {"label", "value"} rows
groups     step, samples, phase, groups: for each param group {weight_decay, trust_ratio (bool), lr_factor, parameters, elements,
           muon (bool; null for other optimizers)}; one per launch and phase
train      step, samples, phase, batch (the global batch of this step), epoch, loss, lr, grad_norm, samples_per_s, tokens_per_s (text only),
           step_time (s), data_time (s of it that rank 0 waited for data), data_wait (data_time as a share of step_time), memory_gib,
           trust_ratio {min, median, max} (absent without trust ratios),
           noise_scale (samples; absent until it can be estimated), noise_scale_error (its standard error),
           noise_scale_recent (over fewer steps), noise_scale_spikes (steps left out so far; absent if none),
           noise_scale_every (steps between two measurements; absent if each is measured)
layers     step, samples, trust_ratio {parameter name: value}
walk       step, samples, distance (from the run's first weights), update_norm, weight_norm, cosine (between this
           update and the one before) of all trained parameters, see `bellwether.optimizers.Trajectory`
norms      step, samples, update_norms, weight_norms {parameter name: value}
between    step, samples, losses: of the step's batch, at evenly spaced weights from before the step to after it
eval       step, samples, phase, loss, accuracy (share), examples, seconds; loss_augmented, accuracy_augmented over several views
           of each image (evaluate.augment); loss_NAME, accuracy_NAME and scores of each of several sets of held-out data; loss_averaged, accuracy_averaged of the averaged weights (averaging);
           the scores of `bellwether.trainer.scores` (labelled text, language models; no accuracy for a regression)
checkpoint step, samples, path, seconds (from the end of the step until it was published), blocked_seconds (for which training stood
           still), waited_seconds (of these, for the writing: the next checkpoint was due, or the phase or run ended); written when
           all ranks know that it is published, which may be some steps later
end        step, samples, seconds, reason ("finished", "stopped", "reached": the target, or "diverged")
========== ==================================================================================================

The file holds each step once: a launch that resumes from step k first moves the lines beyond k, of steps that it trains again,
to ``logs/abandoned.jsonl`` (`bellwether.trainer.abandoned_lines`).

JSON has no NaN: numbers that are not finite are written as the strings "nan", "inf" and "-inf", which any JSON reader
can read; `read` turns them back into floats.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from bellwether.trainer import abandoned_lines, file_errors
from bellwether.trainer.metrics_format import BY_NAME, EVENTS, FILE, HELD, KINDS, OF_STEPS, Line, number, parse

if TYPE_CHECKING:
    from bellwether.trainer.mlperf.result_log import ResultLog
    from bellwether.trainer.trackers import Trackers

__all__ = ["FILE", "HELD", "KINDS", "History", "Line", "Metrics", "read"]

# Counters and clocks, which are not curves.
_NOT_CURVES = ("step", "samples", "phase", "time", "examples", "noise_scale_every")


class Metrics:
    """Writes the metrics of a run to ``<run>/metrics.jsonl``, and sends the scalars of train, eval and walk to trackers.

    One rank writes; the others make ``Metrics(None)``, which does nothing. The trackers are opened at the ``start`` event.
    They get the values by global step, with tags such as ``train/loss``, ``eval/accuracy``, ``train/trust_ratio_median``.

    Args:
        run: the run directory, made if it does not exist; None on a rank that does not write.
        trackers: names, see `bellwether.trainer.trackers`.
        name: of the run in the trackers.
        config: of the run, for the trackers.
        result_log: for MLPerf, written after each event that changes it; None: none.

    Example:
        >>> import tempfile
        >>> run = Path(tempfile.mkdtemp())
        >>> metrics = Metrics(run)
        >>> metrics.write("start", step=0, samples=0, resumed_from=None)
        >>> metrics.write("train", step=1, samples=256, loss=float("nan"))
        >>> metrics.close()
        >>> read(run).train[0]["loss"]
        nan
    """

    def __init__(
        self,
        run: Path | None,
        trackers: Sequence[str] = (),
        *,
        name: str = "",
        config: Mapping[str, Any] | None = None,
        result_log: ResultLog | None = None,
    ) -> None:
        self._file: BinaryIO | None = None
        self._result_log = result_log
        self._trackers: Trackers | None = None
        self._sent: set[tuple[str, int]] = set()  # to the trackers, by an earlier launch
        if run is None:
            return
        self._run, self._names, self._name, self._config = run, trackers, name or run.name, config or {}
        run.mkdir(parents=True, exist_ok=True)
        self._open()

    def _open(self) -> None:
        # Unbuffered: a line reaches the system in one write, so that a killed process leaves at most one partial line.
        self._file = open(self._run / FILE, "ab", buffering=0)  # noqa: SIM115
        if _is_cut(self._run / FILE):
            self._file.write(b"\n")

    def write(self, event: str, **values: Any) -> None:
        """Append one line. Values may be plain Python, paths, or 0-d tensors and numpy scalars.

        Raises:
            ConfigError: at the ``start`` event, if a tracker cannot be opened.
        """
        if self._file is None:
            return
        if event not in EVENTS:
            raise ValueError(f"event: {event!r} is none of {', '.join(EVENTS)}")
        line: Line = {"event": event, "time": round(time.time(), 3), **_plain(values)}
        if event == "start":
            self._abandon(int(line["step"]))
        if event in ("layers", "norms"):
            # Hundreds of numbers per line, drawn as colours: six digits keep the file small.
            for key in BY_NAME:
                if key in line:
                    line[key] = {name: _six_digits(value) for name, value in line[key].items()}
        self._append(json.dumps(line, allow_nan=False, ensure_ascii=False).encode() + b"\n")
        if self._names:
            self._track(event, line)
        if self._result_log is not None and event in ("start", "eval", "end"):
            self._result_log.write()

    def _append(self, data: bytes) -> None:
        """Append one line, or raise: on a disk that becomes full the system writes a part of it, without an error."""
        assert self._file is not None
        with file_errors.naming(self._run / FILE):
            while data:
                data = data[self._file.write(data) :]

    def sync(self) -> None:
        """Bring all lines to the disk, so that no checkpoint is newer than the lines of its steps after a power failure."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def _abandon(self, step: int) -> None:
        """Set the lines beyond a step aside."""
        assert self._file is not None
        self._file.close()
        lines = abandoned_lines.set_aside(self._run, step)
        self._open()
        self._sent = {(line["event"], line["step"]) for line in lines}

    def close(self) -> None:
        """Close the file and the trackers. The lines are on the disk before the run is marked as finished."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk: what failed to be written has been reported
                self.sync()
            self._file.close()
            self._file = None
        if self._trackers is not None:
            self._trackers.close()
            self._trackers = None

    def _track(self, event: str, line: Line) -> None:
        if event == "start":
            from bellwether.trainer.trackers import Trackers  # slow to import, and only rank 0 needs it

            if self._trackers is not None:
                self._trackers.close()
            self._trackers = Trackers(self._run, self._names, self._name, self._config, int(line["step"]))
        elif event in ("train", "eval", "walk") and self._trackers is not None:
            values = {f"{event}/{tag}": value for tag, value in _scalars(line)}
            self._trackers.log(values, int(line["step"]), again=(event, line["step"]) in self._sent)


@dataclass
class History:
    """The lines of a run that lead to its present state, in order, a list for each event.

    A resumed run repeats steps: at a ``start`` from step k every earlier line beyond k belongs to an abandoned branch and
    is left out. Of two lines for one step the later one counts. `start`, `plan`, `groups` and `end` are all kept: they belong
    to launches, not to steps.
    """

    start: list[Line] = field(default_factory=list)
    plan: list[Line] = field(default_factory=list)
    groups: list[Line] = field(default_factory=list)
    train: list[Line] = field(default_factory=list)
    layers: list[Line] = field(default_factory=list)
    walk: list[Line] = field(default_factory=list)
    norms: list[Line] = field(default_factory=list)
    between: list[Line] = field(default_factory=list)
    eval: list[Line] = field(default_factory=list)
    checkpoint: list[Line] = field(default_factory=list)
    end: list[Line] = field(default_factory=list)
    restarts: list[Line] = field(default_factory=list)  #: the starts that resumed from an earlier step, one per step
    skipped: int = 0  #: lines that could not be read: cut off by a kill, or with a value of the wrong type
    seconds: float = 0.0  #: wall time of all launches together, without the waits between them
    state: str = "empty"  #: finished, reached, diverged, stopped, unfinished (running, or killed), or empty


def read(run: Path) -> History:
    """The history in ``<run>/metrics.jsonl``; an empty one if there is no such file."""
    history = History()
    path = run / FILE
    if not path.exists():
        return history
    launches: list[tuple[float, float]] = []  # time of the first and the newest line
    with open(path, "rb") as file:
        for raw in file:
            line = parse(raw)
            if line is None:
                history.skipped += raw.strip() != b""
                continue
            event, now = line["event"], float(line.get("time") or (launches[-1][1] if launches else 0.0))
            if event == "start":
                _rewind(history, int(line["step"]))
                if history.start and line["step"] > 0:
                    history.restarts.append(line)
            if event == "start" or not launches:
                launches.append((now, now))
            launches[-1] = (launches[-1][0], max(launches[-1][1], now))
            history.state = line.get("reason", "finished") if event == "end" else "unfinished"
            lines: list[Line] = getattr(history, event)
            _supersede(lines, line)
            lines.append(line)
    for line in abandoned_lines.read(run):
        if 0 <= line["launch"] < len(launches):
            began, newest = launches[line["launch"]]
            launches[line["launch"]] = (began, max(newest, float(line.get("time") or 0.0)))
    history.seconds = sum(newest - began for began, newest in launches)
    return history


def _rewind(history: History, step: int) -> None:
    for event in OF_STEPS:
        lines: list[Line] = getattr(history, event)
        lines[:] = [line for line in lines if line["step"] <= step]
    # Two launches from one step are one restart: the first made no lasting progress.
    history.restarts[:] = [line for line in history.restarts if line["step"] < step]


def _supersede(lines: list[Line], new: Line) -> None:
    if new["event"] in ("start", "plan", "groups", "end"):
        return
    # The last step of a phase and the first evaluation of the next share a step; their phases differ.
    while lines and lines[-1]["step"] == new["step"] and lines[-1].get("phase") == new.get("phase"):
        lines.pop()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if value is None or isinstance(value, str | int):
        return value
    return _plain(value.item())


def _six_digits(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _scalars(line: Line) -> list[tuple[str, float]]:
    flat: list[tuple[str, Any]] = []
    for key, value in line.items():
        if key not in _NOT_CURVES:
            inner = value.items() if isinstance(value, dict) else [("", value)]
            flat += [(f"{key}_{name}" if name else key, number(v)) for name, v in inner]
    return [(tag, float(value)) for tag, value in flat if isinstance(value, int | float)]


def _is_cut(path: Path) -> bool:
    """Whether the file ends within a line, as after a kill."""
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
