"""The record of a run's SLURM jobs, ``<run>/logs/attempts.jsonl``: submissions, and the begin and end of each attempt."""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bellwether.trainer import run_paths

FILE = Path("logs", "attempts.jsonl")
_JOB = re.compile(r"\d+(_\d+)?")
_RANK_LOGS = re.compile(r"rank\d+\.log")


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


def submitted(run: Path, job: str, log: str) -> None:
    """Record that a job was submitted, so that `bellwether status` shows it before it starts."""
    _append(run, {"event": "submitted", "job": job, "time": round(time.time(), 3), "log": log})


def began(run: Path, attempt: Attempt) -> None:
    """Record the start of an attempt."""
    at_end = ("ended", "status", "reached", "slack", "saved", "reason")
    _append(run, {"event": "begin", **{key: value for key, value in asdict(attempt).items() if key not in at_end}})


def ended(run: Path, attempt: Attempt) -> None:
    """Record the end of an attempt."""
    at_end = ("job", "ended", "status", "reached", "slack", "saved", "reason")
    _append(run, {"event": "end", **{key: getattr(attempt, key) for key in at_end}})


def waiting(run: Path) -> dict[str, Any] | None:
    """The newest submission whose job has not started yet: its job, time and log."""
    newest: dict[str, Any] | None = None
    for line in _lines(run):
        if line.get("event") == "submitted":
            newest = line
        elif line.get("event") == "begin" and newest is not None and line.get("job") == newest.get("job"):
            newest = None
    return newest


def read(run: Path) -> list[Attempt]:
    """All attempts at a run, the oldest first."""
    attempts: list[Attempt] = []
    for line in _lines(run):
        with contextlib.suppress(TypeError, ValueError):
            event = line.pop("event", None)
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
