"""Whether a SLURM job starts again: asked by its batch script before and after each attempt.

    python -m bellwether.launcher.requeue begin CONFIG [key=value ...]
    python -m bellwether.launcher.requeue end --status N --job "$(scontrol show job -o ...)" CONFIG [key=value ...]

``begin`` ends with 0, or with `NOTHING_TO_DO`. ``end`` ends with `signals.SAVED` where the job is to be requeued, else with
the status that the job should end with, and says why. Each attempt leaves two lines in ``<run>/logs/attempts.jsonl``, which
the next one reads: so a job that fails in the same place again stops, rather than burn the queue. No heavy import.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bellwether.trainer import run_paths, signals
from bellwether.trainer.config import ConfigError, ConfigErrors, load

FILE = Path("logs", "attempts.jsonl")
NOTHING_TO_DO = 3
RESTARTS = 50
STUCK = 5  # attempts in a row without a newer checkpoint, for whatever reason, after which a job has no future
# Of ranks that were told to stop while Python was still starting, and nobody listened yet.
_DEAF = (128 + signal.SIGUSR2, 128 + signal.SIGTERM)


@dataclass(frozen=True)
class Attempt:
    """One start of a job, and how it ended; None where nobody could tell any more, as when the first node died."""

    job: str
    restart: int
    time: float  # unix, of its begin
    nodes: str
    tasks: int
    log: str  # of rank 0
    step: int  # of the checkpoint that it began with; 0: none
    ended: float | None = None
    status: int | None = None
    reached: int | None = None  # steps, as far as the heartbeat tells
    slack: int = 0  # steps that the heartbeat may lag behind
    saved: int | None = None  # step of the newest checkpoint when it ended
    reason: str = ""


def submitted(run: Path, job: str, log: str) -> None:
    """Note that a job waits in the queue, so that `bellwether status` knows of it before it begins."""
    _note(run, {"event": "submitted", "job": job, "time": round(time.time(), 3), "log": log})


def waiting(run: Path) -> dict[str, Any] | None:
    """The newest submission that has not begun yet."""
    newest: dict[str, Any] | None = None
    for said in _lines(run):
        if said.get("event") == "submitted":
            newest = said
        elif said.get("event") == "begin" and newest is not None and said.get("job") == newest.get("job"):
            newest = None
    return newest


def attempts(run: Path) -> list[Attempt]:
    """All attempts at a run, the oldest first."""
    found: list[Attempt] = []
    for said in _lines(run):
        with contextlib.suppress(TypeError, ValueError):
            event = said.pop("event", None)
            if event == "begin":
                found.append(Attempt(**said))
            elif event == "end":
                index = max(i for i, attempt in enumerate(found) if attempt.job == said.get("job", attempt.job))
                found[index] = Attempt(**{**asdict(found[index]), **said})
    return found


def _lines(run: Path) -> list[dict[str, Any]]:
    """The record, as far as it can be read: a line may be torn where a node was lost."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in (run / FILE).read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict):
                    found.append(said)
    return found


def is_finished(run: Path) -> bool:
    return (run / run_paths.FINISHED).is_file()


def decide(
    attempts: Sequence[Attempt], status: int, *, finished: bool, restarts: int, job: str = ""
) -> tuple[int, str]:
    """What follows from how the last attempt ended: (status, why). `signals.SAVED` stands for: start again.

    Args:
        attempts: all of the run, the last one being that which ended, with what it reached.
        status: exit status of srun.
        finished: whether the run is marked as finished.
        restarts: how often the job may start again.
        job: what ``scontrol show job -o`` says of it.
    """
    last = attempts[-1]
    failed = status if status != signals.SAVED else 1  # what the job ends with, where it does not start again
    if status == 0:
        return 0, "finished" if finished else "stopped where it was asked to"
    if status == 2:
        return 2, "the config has to be mended first, see the log of rank 0"
    said = dict(re.findall(r"\b(JobState|Restarts|RunTime|TimeLimit)=(\S+)", job))
    if said.get("Restarts", "0").isdigit() and int(said.get("Restarts", "0")) > last.restart:
        return (
            failed,
            f"SLURM itself has put the job back, as it does for a node that failed; goes on from step {last.saved or 0:,}",
        )
    if said.get("JobState") == "COMPLETING" and not _time_is_over(said):
        return failed, f"cancelled; what is saved stays, and the same sbatch goes on from step {last.saved or 0:,}"
    same = [a for a in attempts if a.job == last.job]
    if len(same) > restarts:
        return failed, f"has started {len(same)} times, and BELLWETHER_RESTARTS allows {restarts} restarts"
    recent = same[-STUCK:]
    if len(recent) == STUCK and all((a.saved or 0) <= recent[0].step for a in recent):
        return failed, (
            f"{STUCK} attempts have brought no newer checkpoint than step {last.saved or 0:,}: save more often "
            "(checkpoint.every), or ask for more time (--time, and --signal for the notice)"
        )
    if status == signals.SAVED:
        return signals.SAVED, f"saved at step {last.saved or 0:,} after a signal, to go on in the next attempt"
    if status == signals.LOST:
        return signals.SAVED, f"lost a rank at step {last.reached or 0:,}; goes on from step {last.saved or 0:,}"
    before = same[-2] if len(same) > 1 else None
    if before is not None and _same_failure(before, last):
        return failed, (
            f"failed twice at step {last.reached:,} with no newer checkpoint than step {last.saved or 0:,}: "
            "starting again would fail again, see the log of the rank that failed"
        )
    return (
        signals.SAVED,
        f"failed with status {status} at step {last.reached or 0:,}; tries from step {last.saved or 0:,}",
    )


def _same_failure(before: Attempt, last: Attempt) -> bool:
    """Whether both failed by themselves in the same place. A lost node is bad luck, and nothing that repeats itself."""
    if before.status in (None, 0, signals.SAVED, signals.LOST) or before.reached is None or last.reached is None:
        return False
    slack = max(before.slack, last.slack)
    return before.saved == last.saved and abs(before.reached - last.reached) <= slack


def _time_is_over(said: Mapping[str, str]) -> bool:
    """Whether a job that SLURM is ending has reached its time limit, and was not cancelled."""
    with contextlib.suppress(KeyError, ValueError):
        return _seconds(said["RunTime"]) >= _seconds(said["TimeLimit"])
    return False


def _seconds(text: str) -> int:
    """SLURM's [D-]HH:MM:SS.

    >>> _seconds("1-00:00:05")
    86405
    """
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def begin(run: Path, restarts: int) -> int:
    """Note that an attempt begins; `NOTHING_TO_DO` where the run is finished, 1 where its restarts are spent."""
    if is_finished(run):
        _say(f"{run} is finished, nothing is left to do")
        return NOTHING_TO_DO
    e = os.environ
    job = e.get("SLURM_JOB_ID", "")
    # Also counted here: where the first node died, nobody was left to ask at the end.
    before = [a for a in attempts(run) if a.job == job]
    if len(before) > restarts:
        _say(f"has started {len(before)} times, and BELLWETHER_RESTARTS allows {restarts} restarts")
        return 1
    if before and before[-1].ended is None:
        _say("the attempt before ended without a word: its first node was lost, or was killed")
    shown = f"{e['SLURM_ARRAY_JOB_ID']}_{e['SLURM_ARRAY_TASK_ID']}" if "SLURM_ARRAY_JOB_ID" in e else job
    attempt = Attempt(
        job=job, restart=int(e.get("SLURM_RESTART_COUNT", "0")), time=round(time.time(), 3),
        nodes=e.get("SLURM_JOB_NODELIST", ""), tasks=int(e.get("SLURM_NTASKS", "1")),
        log=str(Path.cwd() / "logs" / f"{shown}-rank0.log"), step=_newest(run),
    )  # fmt: skip
    said = {
        k: v for k, v in asdict(attempt).items() if k not in ("ended", "status", "reached", "slack", "saved", "reason")
    }
    _note(run, {"event": "begin", **said})
    return 0


def end(run: Path, status: int, job: str, restarts: int) -> int:
    """Note how the attempt ended, and decide."""
    own = os.environ.get("SLURM_JOB_ID", "")
    # Another job may have tried the same run meanwhile, and been refused.
    known = [attempt for attempt in attempts(run) if attempt.job == own]
    if not known:
        return status
    reached, slack, ended = _reached(run, known[-1])
    status = {"saved": signals.SAVED, "lost": signals.LOST}.get(ended, status)
    if ended == "failed" and status in (signals.SAVED, signals.LOST, *_DEAF):
        status = 1  # srun's is that of a rank which ended because of the one that failed
    if not ended and status in _DEAF:
        status = signals.SAVED
    saved = _newest(run)
    about = {"status": status, "reached": max(reached, saved), "slack": slack, "saved": saved}
    last = Attempt(**{**asdict(known[-1]), **about})
    verdict, reason = decide([*known[:-1], last], status, finished=is_finished(run), restarts=restarts, job=job)
    if status == 0 and ended == "diverged":
        reason = f"the loss has diverged; the newest checkpoint is that of step {saved:,}"
    _note(run, {"event": "end", "job": own, "ended": round(time.time(), 3), **about, "reason": reason})
    _say(reason)
    return verdict


def _reached(run: Path, attempt: Attempt) -> tuple[int, int, str]:
    """Steps done, how many more there may have been, and how the trainer itself says that it ended."""
    said = beat(run)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        if said["time"] >= attempt.time:
            return int(said["step"]), int(said["steps"]), str(said["ended"])
    return attempt.step, 0, ""


def beat(run: Path) -> dict[str, Any]:
    """The heartbeat's file; empty where there is none."""
    with contextlib.suppress(OSError, ValueError):
        said = json.loads((run / run_paths.HEARTBEAT).read_text())
        if isinstance(said, dict) and isinstance(said.get("time"), int | float):
            return said
    return {}


def _newest(run: Path) -> int:
    """Step of the newest published checkpoint; 0 where there is none."""
    found = run_paths.checkpoints(run / "checkpoints")
    return int(found[-1].name.removeprefix("step-")) if found else 0


def _note(run: Path, line: dict[str, Any]) -> None:
    file = run / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a") as stream:
        stream.write(json.dumps(line) + "\n")


def _say(text: str) -> None:
    attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0")) + 1
    print(f"{time.strftime('%F %T')} bellwether: attempt {attempt}: {text}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bellwether.launcher.requeue", description="Whether a SLURM job starts again."
    )
    parser.add_argument("when", choices=["begin", "end"])
    parser.add_argument("--status", type=int, default=0, help="exit status of srun")
    parser.add_argument("--job", default="", help="what scontrol show job -o says")
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    arguments = parser.parse_args(argv)
    given = os.environ.get("BELLWETHER_RESTARTS") or str(RESTARTS)
    try:
        if not given.isdigit():
            raise ConfigError("BELLWETHER_RESTARTS", given, "is no number", f"write one such as {RESTARTS}")
        run = run_paths.directory(load(arguments.config, arguments.overrides, quiet=True))
        if arguments.when == "begin":
            return begin(run, int(given))
        return end(run, arguments.status, arguments.job, int(given))
    except (ConfigError, ConfigErrors) as error:
        for line in str(error).splitlines():
            print(f"bellwether: {line}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
