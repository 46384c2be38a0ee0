"""Decides whether a SLURM job is requeued. Its batch script calls this before and after each attempt.

    python -m bellwether.launcher.requeue begin CONFIG [key=value ...]
    python -m bellwether.launcher.requeue end --status N --job "$(scontrol show job -o ...)" CONFIG [key=value ...]

``begin`` exits with 0, with `NOTHING_TO_DO` if the run is finished, or with 1 if no restarts are left. ``end`` exits with
`signals.SAVED` if the job is to be requeued, otherwise with the exit status that the job should have, and prints the reason.
Each attempt leaves two lines in ``<run>/logs/attempts.jsonl`` (`bellwether.launcher.attempts`), which the next one reads: a
job that fails twice at the same step stops instead of wasting its queue time. Imports nothing heavy.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bellwether.launcher import attempts, console
from bellwether.launcher.attempts import Attempt, is_finished, newest_checkpoint
from bellwether.trainer import run_paths, signals
from bellwether.trainer.config import ConfigError, ConfigErrors, load

log = logging.getLogger("bellwether.launcher.requeue")  # __name__ is __main__ in the batch script

NOTHING_TO_DO = 3
RESTARTS = 50
STUCK = 5  # consecutive attempts without a newer checkpoint, for whatever reason, after which a job stops
# Exit statuses of ranks that got a signal while Python was starting, before the handlers were installed.
_KILLED_AT_START = (128 + signal.SIGUSR2, 128 + signal.SIGTERM)


def decide(history: Sequence[Attempt], status: int, *, finished: bool, restarts: int, job: str = "") -> tuple[int, str]:
    """Decide what a job does after an attempt.

    Args:
        history: all attempts at the run; the last one has just ended.
        status: exit status of srun.
        finished: whether the run is marked as finished.
        restarts: maximum number of restarts of the job.
        job: the output of ``scontrol show job -o``.

    Returns:
        the job's exit status, where `signals.SAVED` requests a requeue, and the reason.
    """
    last = history[-1]
    saved = f"step {last.saved or 0:,}"
    failed = status if status != signals.SAVED else 1  # exit status of a job that is not requeued
    if status == 0:
        return 0, "finished" if finished else "stopped where the config says"
    if status == 2:
        return 2, "the config is wrong, see the log of rank 0"
    same_job = [attempt for attempt in history if attempt.job == last.job]
    reason = _ended_by_slurm(job, last) or _out_of_attempts(same_job, restarts)
    if reason:
        return failed, reason
    if status == signals.SAVED:
        return signals.SAVED, f"saved at {saved} after a signal; resumes in the next attempt"
    if status == signals.LOST:
        return signals.SAVED, f"lost a rank at step {last.reached or 0:,}; resumes from {saved}"
    if len(same_job) > 1 and _same_failure(same_job[-2], last):
        return failed, (
            f"failed twice at step {last.reached:,} with no newer checkpoint than {saved}: "
            "not requeued, see the log of the rank that failed"
        )
    return signals.SAVED, f"failed with status {status} at step {last.reached or 0:,}; retries from {saved}"


def _ended_by_slurm(job: str, last: Attempt) -> str:
    """The reason why a job must not be requeued here: SLURM has requeued it, or a user has cancelled it."""
    fields = dict(re.findall(r"\b(JobState|Restarts|RunTime|TimeLimit)=(\S+)", job))
    saved = f"step {last.saved or 0:,}"
    if fields.get("Restarts", "0").isdigit() and int(fields.get("Restarts", "0")) > last.restart:
        return f"SLURM itself has requeued the job, as it does after a node failure; resumes from {saved}"
    if fields.get("JobState") == "COMPLETING" and not _reached_time_limit(fields):
        return f"cancelled; checkpoints are kept, and the same sbatch command resumes from {saved}"
    return ""


def _out_of_attempts(same_job: Sequence[Attempt], restarts: int) -> str:
    """The reason why further attempts of a job are pointless or not allowed."""
    if len(same_job) > restarts:
        return f"started {len(same_job)} times, and BELLWETHER_RESTARTS allows {restarts} restarts"
    recent = same_job[-STUCK:]
    if len(recent) == STUCK and all((attempt.saved or 0) <= recent[0].step for attempt in recent):
        return (
            f"{STUCK} attempts without a newer checkpoint than step {same_job[-1].saved or 0:,}: save more often "
            "(checkpoint.every), or request more time (--time, and --signal for the warning before the limit)"
        )
    return ""


def _same_failure(before: Attempt, last: Attempt) -> bool:
    """Whether both attempts failed at the same step by themselves. The loss of a node does not count."""
    if before.status in (None, 0, signals.SAVED, signals.LOST) or before.reached is None or last.reached is None:
        return False
    slack = max(before.slack, last.slack)
    return before.saved == last.saved and abs(before.reached - last.reached) <= slack


def _reached_time_limit(fields: Mapping[str, str]) -> bool:
    """Whether SLURM ends a job because of its time limit."""
    with contextlib.suppress(KeyError, ValueError):
        return _seconds(fields["RunTime"]) >= _seconds(fields["TimeLimit"])
    return False


def _seconds(text: str) -> int:
    """Parse SLURM's [D-]HH:MM:SS.

    >>> _seconds("1-00:00:05")
    86405
    """
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def begin(run: Path, restarts: int) -> int:
    """Record the start of an attempt. Returns `NOTHING_TO_DO` if the run is finished, 1 if no restarts are left."""
    if is_finished(run):
        _print(f"{run} is finished, nothing to do")
        return NOTHING_TO_DO
    e = os.environ
    job = e.get("SLURM_JOB_ID", "")
    # Checked here too: when the first node dies, `end` does not run.
    before = [attempt for attempt in attempts.read(run) if attempt.job == job]
    if len(before) > restarts:
        _print(f"started {len(before)} times, and BELLWETHER_RESTARTS allows {restarts} restarts")
        return 1
    if before and before[-1].ended is None:
        _print("the previous attempt recorded no end: its first node was lost, or its script was killed")
    task = f"{e['SLURM_ARRAY_JOB_ID']}_{e['SLURM_ARRAY_TASK_ID']}" if "SLURM_ARRAY_JOB_ID" in e else job
    attempt = Attempt(
        job=job, restart=int(e.get("SLURM_RESTART_COUNT", "0")), time=round(time.time(), 3),
        nodes=e.get("SLURM_JOB_NODELIST", ""), tasks=int(e.get("SLURM_NTASKS", "1")),
        log=str(Path.cwd() / attempts.rank0_log(task)), step=newest_checkpoint(run),
    )  # fmt: skip
    attempts.began(run, attempt)
    return 0


def end(run: Path, status: int, job: str, restarts: int) -> int:
    """Record the end of an attempt; returns the job's exit status, as `decide` does."""
    own_job = os.environ.get("SLURM_JOB_ID", "")
    # Another job may have tried the same run in the meantime, and been refused.
    own_attempts = [attempt for attempt in attempts.read(run) if attempt.job == own_job]
    if not own_attempts:
        return status
    reached, slack, outcome = _heartbeat_at_end(run, own_attempts[-1])
    status = _true_status(status, outcome)
    saved = newest_checkpoint(run)
    last = replace(own_attempts[-1], status=status, reached=max(reached, saved), slack=slack, saved=saved)
    exit_code, reason = decide(
        [*own_attempts[:-1], last], status, finished=is_finished(run), restarts=restarts, job=job
    )
    if status == 0 and outcome == "diverged":
        reason = f"the loss diverged; the newest checkpoint is that of step {saved:,}"
    attempts.ended(run, replace(last, ended=round(time.time(), 3), reason=reason))
    _print(reason)
    return exit_code


def _true_status(status: int, outcome: str) -> int:
    """The exit status of the rank that ended the run. srun returns that of a rank which may have ended because of another.

    Args:
        outcome: how the run ended according to the heartbeat; empty: not recorded.
    """
    status = {"saved": signals.SAVED, "lost": signals.LOST}.get(outcome, status)
    if outcome == "failed" and status in (signals.SAVED, signals.LOST, *_KILLED_AT_START):
        return 1
    if not outcome and status in _KILLED_AT_START:
        return signals.SAVED
    return status


def _heartbeat_at_end(run: Path, attempt: Attempt) -> tuple[int, int, str]:
    """The last step of an attempt, by how many steps that may be too low, and how the run ended."""
    beat = attempts.heartbeat(run)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        if beat["time"] >= attempt.time:
            return int(beat["step"]), int(beat["steps"]), str(beat["ended"])
    return attempt.step, 0, ""


def _print(text: str) -> None:
    attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0")) + 1
    print(f"{time.strftime('%F %T')} bellwether: attempt {attempt}: {text}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bellwether.launcher.requeue", description="Decides whether a SLURM job is requeued."
    )
    parser.add_argument("when", choices=["begin", "end"])
    parser.add_argument("--status", type=int, default=0, help="exit status of srun")
    parser.add_argument("--job", default="", help="output of scontrol show job -o")
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    arguments = parser.parse_args(argv)
    console.setup()
    restarts = os.environ.get("BELLWETHER_RESTARTS") or str(RESTARTS)
    try:
        if not restarts.isdigit():
            raise ConfigError("BELLWETHER_RESTARTS", restarts, "is not a number", f"write one such as {RESTARTS}")
        config = load(arguments.config, arguments.overrides)
        run = run_paths.directory(config)
        if arguments.when == "begin":
            attempts.prune_logs(run, config.log.keep)
            return begin(run, int(restarts))
        return end(run, arguments.status, arguments.job, int(restarts))
    except (ConfigError, ConfigErrors) as error:
        for line in str(error).splitlines():
            log.error("%s", line)
        return 2


if __name__ == "__main__":
    sys.exit(main())
