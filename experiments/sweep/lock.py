"""One process at a time starts the trials of a sweep."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from bellwether.experiments.sweep.study import Study
from bellwether.trainer.config import ConfigError
from bellwether.trainer.file_locks import file_lock

JOBS = "jobs.txt"  # numbers of the job arrays that were submitted for the sweep, one per line


@contextmanager
def exclusive(study: Study) -> Iterator[None]:
    """Hold a study's lock: no other command and no queued job array starts trials of it.

    Raises:
        ConfigError: if another command or a job array works on the study.
    """
    directory, name = study.directory, study.sweep.name
    try:
        with file_lock(directory / ".lock", blocking=False):
            for number in _submitted(directory):
                if _is_in_queue(number):
                    raise ConfigError("name", name, f"job {number} works on {directory}", "wait for it, or scancel it")
            yield
    except Timeout:
        problem = f"another bellwether sweep works in {directory}"
        raise ConfigError("name", name, problem, "wait for it, or stop it") from None


def _submitted(directory: Path) -> list[str]:
    file = directory / JOBS
    return file.read_text().split() if file.exists() and shutil.which("squeue") else []


def _is_in_queue(number: str) -> bool:
    done = subprocess.run(["squeue", "--noheader", "--jobs", number], capture_output=True, text=True)
    return done.returncode == 0 and bool(done.stdout.strip())
