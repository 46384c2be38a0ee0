"""What the time of a run went to, over all its launches and jobs: training, queue, start, lost steps, and what is unknown.

From ``metrics.jsonl``, ``logs/abandoned.jsonl`` and, for SLURM jobs, ``logs/attempts.jsonl``. The parts add up to the time from the
first submission or launch to the newest sign of life. Imports are light: `bellwether status` uses it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bellwether.trainer import abandoned_lines, metrics_format, run_paths
from bellwether.trainer.metrics_format import Line

TRAINING, DATA, LOST, SAVING, EVALUATING = "training", "waiting for data", "redoing lost steps", "saving", "evaluating"
STARTING, QUEUE, NOT_RUNNING, UNKNOWN = "starting", "waiting in the queue", "not running", "unknown"
PARTS = (TRAINING, DATA, LOST, SAVING, EVALUATING, STARTING, QUEUE, NOT_RUNNING, UNKNOWN)
_ATTEMPTS = Path("logs", "attempts.jsonl")


@dataclass
class Goodput:
    """Seconds of each of `PARTS`; they add up to `total`."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    failures: int = 0  # launches that ended neither by themselves nor after a signal

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def running(self) -> float:
        """Seconds in which the run had its nodes."""
        return self.total - self.seconds[QUEUE] - self.seconds[NOT_RUNNING]

    @property
    def shares(self) -> dict[str, float]:
        """The share of each part, the largest first; without those that took no time."""
        ordered = sorted(self.seconds.items(), key=lambda item: -item[1])
        return {part: seconds / self.total for part, seconds in ordered if seconds > 0} if self.total else {}

    def __str__(self) -> str:
        return ", ".join(f"{share:.1%} {part}" for part, share in self.shares.items() if share >= 0.0005)


@dataclass
class _Launch:
    start: Line
    lines: list[Line] = field(default_factory=list)  # in the order of writing
    begun: float | None = None  # of its job's attempt
    reached: int = 0  # last step, logged or not

    @property
    def newest(self) -> float:
        return max(float(line.get("time") or 0.0) for line in [self.start, *self.lines])

    @property
    def ended_well(self) -> bool:
        return any(line["event"] == "end" for line in self.lines)


def account(run: Path, now: float | None = None) -> Goodput:
    """The account of a run directory.

    Args:
        now: until when a job that waits in the queue has waited; default: the present.
    """
    launches, attempts = _launches(run), _attempts(run)
    result = Goodput()
    times = [launch.start["time"] - _startup(launch.start) for launch in launches]
    times += [attempt["time"] for attempt in attempts]
    if not times:
        return result
    begin, newest = min(times), max([*times, *(launch.newest for launch in launches)])
    newest = max([newest, *(attempt["ended"] for attempt in attempts if attempt["ended"])])
    if (beat := _last_beat(run)) is not None:
        newest = max(newest, beat)
    _match(launches, attempts)
    newest = max(newest, _jobs(result, launches, attempts, newest, time.time() if now is None else now))
    furthest = 0
    for index, launch in enumerate(launches):
        _one_launch(result, launch, furthest)
        furthest = max([furthest, launch.reached, *(line["step"] for line in launch.lines if line["event"] == "train")])
        if index and not attempts and launches[index - 1].ended_well:
            gap = launch.start["time"] - _startup(launch.start) - launches[index - 1].newest
            result.seconds[NOT_RUNNING] += max(0.0, gap)
    last = launches[-1] if launches else None
    failed = [launch for launch in launches if not launch.ended_well and launch is not last]
    result.failures = sum(attempt["failed"] for attempt in attempts) if attempts else len(failed)
    result.seconds[UNKNOWN] = max(0.0, newest - begin - result.total)
    return result


def _launches(run: Path) -> list[_Launch]:
    """The launches with all their lines, also those that were set aside."""
    found: list[_Launch] = []
    with contextlib.suppress(FileNotFoundError):
        for raw in (run / metrics_format.FILE).read_bytes().splitlines():
            line = metrics_format.parse(raw)
            if line is None or not isinstance(line.get("time"), int | float):
                continue
            if line["event"] == "start":
                found.append(_Launch(line))
            elif found:
                found[-1].lines.append(line)
    for line in abandoned_lines.read(run):
        if 0 <= line["launch"] < len(found) and isinstance(line.get("time"), int | float):
            found[line["launch"]].lines.append(line)
    for launch in found:
        launch.lines.sort(key=lambda line: float(line["time"]))
    return found


def _attempts(run: Path) -> list[dict[str, Any]]:
    """The attempts of SLURM jobs, each with the time of its submission; one that only waits has no ``begun``."""
    found: list[dict[str, Any]] = []
    blank = {"begun": None, "ended": None, "failed": False, "reached": 0, "again": False}
    for line in _json_lines(run / _ATTEMPTS):
        event, job, at = line.get("event"), line.get("job"), line.get("ended", line.get("time"))
        if not isinstance(at, int | float):
            continue
        of_job = [attempt for attempt in found if attempt["job"] == job]
        if event == "submitted":
            found.append({**blank, "job": job, "time": at})
        elif event == "begin" and of_job and of_job[-1]["begun"] is None:
            of_job[-1]["begun"] = at
        elif event == "begin":
            found.append({**blank, "job": job, "time": at, "begun": at, "again": bool(of_job)})
        elif event == "end" and of_job:
            status, reached = line.get("status"), line.get("reached")
            of_job[-1]["ended"] = at
            of_job[-1]["failed"] = status not in (None, 0, 75)  # 75: signals.SAVED
            of_job[-1]["reached"] = reached if isinstance(reached, int) else 0
    return found


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(OSError):  # a record that cannot be read must not fail a run that has ended
        for text in file.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict):
                    yield line


def _match(launches: list[_Launch], attempts: list[dict[str, Any]]) -> None:
    """Find the attempt of each launch: the newest that had begun, if no earlier launch is of it."""
    taken: set[int] = set()
    for launch in launches:
        index = max(
            (i for i, a in enumerate(attempts) if a["begun"] and a["begun"] <= launch.start["time"]), default=-1
        )
        if index >= 0:
            launch.reached = attempts[index]["reached"]
            attempts[index]["launched"] = True
            if index not in taken:
                launch.begun = attempts[index]["begun"]
            taken.add(index)


def _jobs(result: Goodput, launches: list[_Launch], attempts: list[dict[str, Any]], newest: float, now: float) -> float:
    """Add what the record of jobs says; returns until when it says something."""
    free_since = attempts[0]["time"] if attempts else 0.0  # when the attempt before had ended
    for attempt in attempts:
        if attempt["begun"] is None and attempt is not attempts[-1]:
            continue  # cancelled while it waited
        begun = attempt["begun"] if attempt["begun"] is not None else max(now, newest)
        # A job of a chain is submitted while the one before runs; SLURM requeues a job when its attempt has ended.
        queued = free_since if attempt["again"] else max(attempt["time"], free_since)
        result.seconds[NOT_RUNNING] += max(0.0, queued - free_since)
        result.seconds[QUEUE] += max(0.0, begun - queued)
        free_since = max(free_since, begun)
        if attempt["begun"] is None:
            return begun
        if attempt["ended"] is not None and not attempt.get("launched"):
            result.seconds[STARTING] += attempt["ended"] - begun
        inside = [launch.newest for launch in launches if launch.start["time"] >= begun]
        free_since = max([free_since, attempt["ended"] or min(inside, default=begun)])
    return newest


def _one_launch(result: Goodput, launch: _Launch, furthest: int) -> None:
    """Add the lines of one launch.

    Args:
        furthest: step that earlier launches have reached.
    """
    started = float(launch.start["time"])
    result.seconds[STARTING] += max(0.0, started - launch.begun) if launch.begun else _startup(launch.start)
    step, cursor, is_first = int(launch.start["step"]), started, True
    spare = 0.0  # seconds before the cursor that no line has accounted for
    for line in launch.lines:
        at, event, measured, seconds = float(line["time"]), line["event"], 0.0, line.get("seconds")
        gap = max(0.0, at - cursor)
        if event == "train":
            measured = _steps(result, line, step, furthest, gap)
            step = max(step, int(line["step"]))
        elif event == "checkpoint" and "blocked_seconds" in line:
            # Recorded while training went on: training has stood still for it at some moment before.
            blocked = min(float(line["blocked_seconds"]), spare + gap)
            result.seconds[SAVING] += blocked
            cursor += max(0.0, blocked - spare)
            spare = max(0.0, spare - blocked)
            continue
        elif event in ("checkpoint", "eval"):
            measured = min(float(seconds), gap) if isinstance(seconds, int | float) else gap
            result.seconds[SAVING if event == "checkpoint" else EVALUATING] += measured
        if not is_first:
            spare += gap - measured
        elif measured:  # before the first step the engine is built and the checkpoint is loaded
            result.seconds[STARTING] += gap - measured
        is_first = is_first and not measured
        cursor = cursor if is_first else max(cursor, at)


def _steps(result: Goodput, line: Line, step: int, furthest: int, gap: float) -> float:
    """Add the steps of a train line after a step; returns their seconds, which are no more than those since the line before."""
    count, each = max(0, line["step"] - step), float(line.get("step_time") or 0.0)
    measured = min(count * each, gap)
    again = min(count, max(0, furthest - step)) / count if count else 0.0
    waited = min(measured, count * float(line.get("data_time") or 0.0)) * (1 - again)
    result.seconds[LOST] += measured * again
    result.seconds[DATA] += waited
    result.seconds[TRAINING] += measured * (1 - again) - waited
    return measured


def _startup(start: Line) -> float:
    """Seconds from the start of the process to the ``start`` event."""
    seconds = start.get("startup")
    return max(0.0, float(seconds)) if isinstance(seconds, int | float) else 0.0


def _last_beat(run: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return float(json.loads((run / run_paths.HEARTBEAT).read_text())["time"])
    return None
