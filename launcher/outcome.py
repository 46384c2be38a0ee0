"""How an attempt ended, from srun's exit status and messages, and from the run's heartbeat. None of them is sufficient alone."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Sequence
from pathlib import Path

from bellwether.launcher import attempts
from bellwether.launcher.attempts import Attempt
from bellwether.launcher.srun_messages import Failure
from bellwether.trainer import signals

# Exit statuses of ranks that got a signal while Python was starting, before the handlers were installed.
_KILLED_AT_START = (128 + signal.SIGUSR2, 128 + signal.SIGTERM)
_RANK = re.compile(r"rank (\d+) on ([\w.-]+)")
_OUTCOMES = ("finished", "stopped", "diverged")  # of a heartbeat, where srun's status 0 is to be believed


def who_failed(
    status: int, failure: Failure | None, silent: Sequence[tuple[int, str]]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The nodes and ranks that failed first: those that rank 0 no longer heard, or those that srun names first."""
    if status == signals.LOST and silent:
        return tuple(dict.fromkeys(host for _, host in silent)), tuple(rank for rank, _ in silent)
    if failure is None or failure.status in (signals.LOST, signals.SAVED):
        return (), ()  # it ended because of another
    return failure.nodes, failure.ranks


def true_status(status: int, outcome: str, failure: Failure | None = None) -> int:
    """The exit status of the rank that ended the run. srun returns that of a rank which may have ended because of another.

    Args:
        outcome: how the run ended according to the heartbeat; empty: not recorded.
        failure: the first one that srun reports.
    """
    if status == 0:
        # srun returns 0 for a step that lost a node.
        return signals.LOST if failure is not None and outcome not in _OUTCOMES else 0
    status = {"saved": signals.SAVED, "lost": signals.LOST}.get(outcome, status)
    own_failure = failure is not None and failure.status not in (
        None,
        0,
        signals.SAVED,
        signals.LOST,
        *_KILLED_AT_START,
    )
    if outcome == "failed" and status in (signals.SAVED, signals.LOST, *_KILLED_AT_START):
        return failure.status if own_failure and failure is not None and failure.status is not None else 1
    if not outcome and status in _KILLED_AT_START:
        # A rank that srun kills because of another has the same status as one that got a signal at its start.
        if failure is not None and failure.status is None:
            return signals.LOST
        return failure.status if own_failure and failure is not None and failure.status is not None else signals.SAVED
    return status


def heartbeat_at_end(run: Path, attempt: Attempt, mark: str) -> tuple[int, int, str, list[tuple[int, str]]]:
    """The last step of an attempt, by how many steps that may be too low, how the run ended, and silent ranks with hosts.

    Args:
        mark: that the attempt's ranks write into their heartbeat (BELLWETHER_ATTEMPT). Times may be those of different clocks.
    """
    beat = attempts.heartbeat(run)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        if beat["attempt"] == mark if beat.get("attempt") else beat["time"] >= attempt.time:
            rows = beat.get("furthest_behind") or []
            longest = max((float(row["silent_s"]) for row in rows), default=0.0)
            # Those that fell silent together with the one that has been silent longest.
            silent = [
                (int(row["rank"]), str(row["host"])) for row in rows if float(row["silent_s"]) > max(10.0, longest / 2)
            ]
            silent = silent or [(int(rank), host) for rank, host in _RANK.findall(str(beat.get("reason", "")))]
            return int(beat["step"]), int(beat["steps"]), str(beat["ended"] or ""), silent
    return attempt.step, 0, "", []
