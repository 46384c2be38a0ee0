"""Decides what a SLURM job does after an attempt. Pure functions; `bellwether.launcher.requeue` calls them.

`decide` says whether the run goes on, and `bellwether.launcher.placement` on which nodes.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bellwether.launcher.attempts import Attempt
from bellwether.trainer import signals

EXIT, RETRY, REQUEUE = "exit", "retry", "requeue"
STUCK = 5  # consecutive attempts without a newer checkpoint, for whatever reason, after which a job stops
SUSPECT = 2  # failures of ranks on one node, after which it is used no more
_LAST_PART = 0.1  # of the time limit: with less left, a fresh job is better than a start inside this one


@dataclass(frozen=True)
class Decision:
    """What a job does next.

    Attributes:
        action: `EXIT`; `RETRY`: srun again inside the allocation, if enough of its nodes answer; `REQUEUE`.
        code: the job's exit status, for `EXIT`.
        stopped: whether later jobs of a chain must not go on either.
    """

    action: str
    code: int
    reason: str
    stopped: bool = False


def decide(
    history: Sequence[Attempt],
    status: int,
    *,
    finished: bool,
    restarts: int,
    job: str = "",
    busy: str = "",
    made: int = 0,
) -> Decision:
    """Decide what a job does after an attempt.

    Args:
        history: all attempts of the job, and of the jobs that it continues; the last one has just ended.
        status: exit status of the rank that failed first.
        finished: whether the run is marked as finished.
        restarts: maximum number of restarts of the job.
        job: the output of ``scontrol show job -o``.
        busy: the process that trains in the run directory instead, if there is one.
        made: how many attempts there were at least, where the record has fewer.
    """
    last = history[-1]
    saved = f"step {last.saved or 0:,}"
    failed = status if status not in (0, signals.SAVED) else 1  # exit status of a job that does not go on
    if status == 0:
        return Decision(EXIT, 0, "finished" if finished else "stopped where the config says")
    if status == 2 and busy:
        return Decision(EXIT, 0, f"{busy} trains in this run, nothing to do here")
    if status == 2:
        return Decision(EXIT, 2, "the config is wrong, see the log of rank 0", stopped=True)
    if reason := _ended_by_slurm(job, last):
        return Decision(EXIT, failed, reason)
    if reason := out_of_attempts(history, restarts, made):
        return Decision(EXIT, failed, reason, stopped=True)
    if status == signals.SAVED:
        return Decision(REQUEUE, 0, f"saved at {saved} after a signal; resumes in the next attempt")
    action = RETRY if _has_time_left(job) else REQUEUE
    if status == signals.LOST:
        return Decision(action, 0, f"lost {_where(last)} at step {last.reached or 0:,}; resumes from {saved}")
    if len(history) > 1 and same_failure(history[-2], last):
        reason = (
            f"failed twice at step {last.reached:,} with no newer checkpoint than {saved}: "
            f"not started again, see the log of {_where(last, 'the rank that failed')}"
        )
        return Decision(EXIT, failed, reason, stopped=True)
    where = f" ({_where(last)})" if last.failed_on else ""
    if status == signals.IO:
        return Decision(action, 0, f"data could not be read at step {last.reached or 0:,}{where}; retries from {saved}")
    return Decision(
        action, 0, f"failed with status {status} at step {last.reached or 0:,}{where}; retries from {saved}"
    )


def suspects(history: Sequence[Attempt]) -> dict[str, str]:
    """The nodes on which ranks have failed twice, and that as text."""
    counted = Counter(node for attempt in history for node in attempt.failed_on)
    return {node: f"ranks failed there {count} times" for node, count in counted.items() if count >= SUSPECT}


def same_failure(before: Attempt, last: Attempt) -> bool:
    """Whether both attempts failed at the same step by themselves, and on different nodes, as far as they are known."""
    # On the same node, it may be that node: it is used no more, and what happens on others decides.
    return is_repeated(before, last) and not set(before.failed_on) & set(last.failed_on)


def is_repeated(before: Attempt, last: Attempt) -> bool:
    """Whether both attempts failed at the same step by themselves: not because a node or link was lost."""
    if (
        before.status in (None, 0, signals.SAVED, signals.IO, signals.LOST)
        or before.reached is None
        or last.reached is None
    ):
        return False
    if last.status in (None, 0, signals.SAVED, signals.IO, signals.LOST):
        return False
    slack = max(before.slack, last.slack)
    return before.saved == last.saved and abs(before.reached - last.reached) <= slack


def out_of_attempts(history: Sequence[Attempt], restarts: int, made: int = 0) -> str:
    """The reason why further attempts are pointless or not allowed."""
    made = max(made, len(history))
    if made > restarts:
        return f"started {made} times, and BELLWETHER_RESTARTS allows {restarts} restarts"
    recent = history[-STUCK:]
    if len(recent) == STUCK and all((attempt.saved or 0) <= recent[0].step for attempt in recent):
        return (
            f"{STUCK} attempts without a newer checkpoint than step {history[-1].saved or 0:,}: save more often "
            "(checkpoint.every), or request more time (--time, and --signal for the warning before the limit)"
        )
    return ""


def _where(last: Attempt, unknown: str = "a rank") -> str:
    """The ranks and nodes that failed first, as far as they are known."""
    if not last.failed_on:
        return unknown
    ranks = f"rank{'s' if len(last.failed_ranks) > 1 else ''} {', '.join(map(str, last.failed_ranks))} on "
    return f"{ranks if last.failed_ranks else ''}{', '.join(last.failed_on)}"


def _ended_by_slurm(job: str, last: Attempt) -> str:
    """The reason why a job must not go on here: SLURM has requeued it, or a user has cancelled it."""
    fields = dict(re.findall(r"\b(JobState|Restarts|RunTime|TimeLimit)=(\S+)", job))
    saved = f"step {last.saved or 0:,}"
    if fields.get("Restarts", "0").isdigit() and int(fields.get("Restarts", "0")) > last.restart:
        return f"SLURM itself has requeued the job, as it does after a node failure; resumes from {saved}"
    if fields.get("JobState") == "COMPLETING" and not _reached_time_limit(fields):
        return f"cancelled; checkpoints are kept, and the same sbatch command resumes from {saved}"
    return ""


def _reached_time_limit(fields: Mapping[str, str]) -> bool:
    """Whether SLURM ends a job because of its time limit."""
    with contextlib.suppress(KeyError, ValueError):
        return _seconds(fields["RunTime"]) >= _seconds(fields["TimeLimit"])
    return False


def _has_time_left(job: str) -> bool:
    """Whether the job runs, with enough time for another start before its limit."""
    fields = dict(re.findall(r"\b(JobState|RunTime|TimeLimit)=(\S+)", job))
    if fields.get("JobState") != "RUNNING":
        return False
    with contextlib.suppress(KeyError, ValueError):
        limit = _seconds(fields["TimeLimit"])
        return limit - _seconds(fields["RunTime"]) > _LAST_PART * limit
    return True  # no limit


def _seconds(text: str) -> int:
    """Parse SLURM's [D-]HH:MM:SS.

    >>> _seconds("1-00:00:05")
    86405
    """
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
