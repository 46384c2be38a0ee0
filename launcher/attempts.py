"""The record of a run's SLURM jobs, ``<run>/logs/attempts.jsonl``: submissions, and the begin and end of each attempt."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from bellwether.trainer import run_paths

log = logging.getLogger(__name__)

T = TypeVar("T")

FILE = Path("logs", "attempts.jsonl")
_JOB = re.compile(r"\d+(_\d+)?")
_RANK_LOGS = re.compile(r"rank\d+\.log")
_RETRY_SECONDS = (0.5, 2.0, 5.0)  # between tries of an access to the file system
_AT_END = ("ended", "status", "reached", "slack", "saved", "reason", "failed_on", "failed_ranks", "stopped")


@dataclass(frozen=True)
class Attempt:
    """One start of a job, and how it ended. The later fields are None if no end was recorded, as when the first node died."""

    job: str
    restart: int
    time: float  # unix time of the start
    nodes: str
    tasks: int
    log: str  # rank 0's output
    step: int  # of the checkpoint that it started from; 0: none
    ended: float | None = None  # unix time
    status: int | None = None  # exit status
    reached: int | None = None  # last step, according to the heartbeat
    slack: int = 0  # steps by which the heartbeat may lag behind
    saved: int | None = None  # step of the newest checkpoint at the end
    reason: str = ""
    series: str = ""  # the first job of a chain of jobs that continue one another; empty: this job
    failed_on: tuple[str, ...] = ()  # nodes that failed first
    failed_ranks: tuple[int, ...] = ()
    stopped: bool = False  # for a reason that holds for later jobs of the chain too

    @property
    def of(self) -> str:
        """The job, or the first one of its chain, whose attempts count together."""
        return self.series or self.job


def rank0_log(job: str) -> Path:
    """Rank 0's output of a job, below the directory in which it was submitted; beside it is that of the other ranks.

    Args:
        job: its id; of a task of a job array, ``<array>_<task>``.
    """
    return Path("logs", job, "rank0.log")


def prune_logs(run: Path, keep: int) -> None:
    """Delete the ranks' output of all but the newest ``keep`` jobs of a run. Other files in a job's folder stay."""
    folders = list(dict.fromkeys(Path(attempt.log).parent for attempt in reversed(read(run))))
    for folder in folders[keep:]:
        if folder.parent.name == "logs" and _JOB.fullmatch(folder.name):
            run_paths.remove_files(folder, _RANK_LOGS)


def submitted(run: Path, job: str, log: str, series: str = "") -> None:
    """Record that a job was submitted, so that `bellwether status` shows it before it starts.

    Args:
        series: the first job of its chain.
    """
    _append(run, {"event": "submitted", "job": job, "time": round(time.time(), 3), "log": log, "series": series})


def next_of(run: Path, job: str) -> str:
    """The job of a chain that was submitted after this one; empty where there is none."""
    lines = [line for line in _lines(run) if line.get("event") == "submitted"]
    numbers = [str(line.get("job")) for line in lines]
    index = numbers.index(job) + 1 if job in numbers else len(lines)
    return numbers[index] if index < len(lines) and lines[index].get("series") else ""


def began(run: Path, attempt: Attempt) -> None:
    """Record the start of an attempt."""
    _append(run, {"event": "begin", **{key: value for key, value in asdict(attempt).items() if key not in _AT_END}})


def ended(run: Path, attempt: Attempt) -> None:
    """Record the end of an attempt."""
    _append(run, {"event": "end", "job": attempt.job, **{key: getattr(attempt, key) for key in _AT_END}})


def excluded(run: Path, job: str, nodes: Mapping[str, str]) -> None:
    """Record nodes that a job uses no more, and why."""
    _append(run, {"event": "excluded", "job": job, "time": round(time.time(), 3), "nodes": dict(nodes)})


def excluded_nodes(run: Path, job: str) -> dict[str, str]:
    """The nodes that a job uses no more, and why."""
    found: dict[str, str] = {}
    for line in _lines(run):
        if line.get("event") == "excluded" and line.get("job") == job and isinstance(line.get("nodes"), dict):
            found.update(line["nodes"])
    return found


def best_effort(what: str, act: Callable[[], T], default: T) -> T:
    """Do something with the record of a run: a file system that fails is no reason to end a run, or not to start it.

    Args:
        what: for the message, as in ``reading attempts.jsonl``.

    Returns:
        the result, or after several tries the default.
    """
    for seconds in (*_RETRY_SECONDS, None):
        try:
            return act()
        except OSError as error:
            if seconds is None:
                log.warning("%s failed (%s): the run goes on without it", what, error)
                return default
            time.sleep(seconds)
    raise AssertionError


def waiting(run: Path) -> dict[str, Any] | None:
    """The submission that starts next: its job, time and log. None while a job of its chain runs."""
    queue: list[dict[str, Any]] = []
    running: set[str] = set()  # jobs, or first jobs of chains
    for line in _lines(run):
        event, job = line.get("event"), line.get("job")
        of = str(line.get("series") or job)
        if event == "submitted":
            queue.append(line)
        elif event == "begin":
            queue = [
                one
                for one in queue
                if one.get("job") != job and (one.get("series") or "") == (line.get("series") or of)
            ]
            running.add(of)
        elif event == "end":
            running.clear()
    if not queue or str(queue[-1].get("series") or "") in running:
        return None
    return queue[0] if queue[-1].get("series") else queue[-1]


def read(run: Path) -> list[Attempt]:
    """All attempts at a run, the oldest first."""
    attempts: list[Attempt] = []
    known = {field.name for field in fields(Attempt)}
    for line in _lines(run):
        with contextlib.suppress(TypeError, ValueError):
            event = line.pop("event", None)
            line = {key: value for key, value in line.items() if key in known}  # a newer version may write more
            line.update({key: tuple(line[key]) for key in ("failed_on", "failed_ranks") if key in line})
            if event == "begin":
                attempts.append(Attempt(**line))
            elif event == "end":
                index = max(i for i, attempt in enumerate(attempts) if attempt.job == line.get("job", attempt.job))
                attempts[index] = Attempt(**{**asdict(attempts[index]), **line})
    return attempts


def is_finished(run: Path) -> bool:
    return (run / run_paths.FINISHED).is_file()


def heartbeat(run: Path) -> dict[str, Any]:
    """The contents of the heartbeat's file; empty where there is none."""
    with contextlib.suppress(OSError, ValueError):
        beat = json.loads((run / run_paths.HEARTBEAT).read_text())
        if isinstance(beat, dict) and isinstance(beat.get("time"), int | float):
            return beat
    return {}


def newest_checkpoint(run: Path) -> int:
    """Step of the newest published checkpoint; 0 where there is none."""
    published = run_paths.checkpoints(run / "checkpoints")
    return int(published[-1].name.removeprefix("step-")) if published else 0


def _lines(run: Path) -> list[dict[str, Any]]:
    """The readable lines of the record: the loss of a node may have truncated one."""
    records = []
    with contextlib.suppress(FileNotFoundError):
        for text in (run / FILE).read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict):
                    records.append(line)
    return records


def _append(run: Path, line: dict[str, Any]) -> None:
    file = run / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a") as stream:
        stream.write(json.dumps(line) + "\n")
