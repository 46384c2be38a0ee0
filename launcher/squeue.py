"""Reads the state of a job from SLURM's queue."""

from __future__ import annotations

import subprocess


def is_queued(job: str) -> bool:
    """Whether a job is in SLURM's queue; False if squeue cannot be run."""
    return bool(_line(job, "%T"))


def state(job: str) -> str:
    """A job's state, with its reason and expected start, or its used time and limit."""
    line = _line(job, "%T|%r|%M|%l|%S")
    if line is None:
        return "no answer from squeue"
    if not line:
        return "no longer in the queue"
    state, reason, used, limit, start = line.split("|")
    if state == "PENDING":
        return f"pending ({reason}), expected to start {start}"
    return f"{state.lower()}, {used} of {limit} used"


def _line(job: str, form: str) -> str | None:
    """A job's line of squeue's output; empty if the job is not in the queue, None if squeue does not answer."""
    command = ["squeue", "--noheader", "--jobs", job, "--format", form]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return "" if done.returncode else (done.stdout.strip().splitlines() or [""])[0]
