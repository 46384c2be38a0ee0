"""``bellwether logs``: the output of a run's rank 0."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from bellwether.launcher import attempts
from bellwether.launcher.status import check_run_directory, is_running
from bellwether.trainer import run_paths
from bellwether.trainer.config import ConfigError

_POLL = 0.5  # seconds between looks at the file
_LAST_LINES = 1.0  # seconds; a run still prints lines after its last heartbeat


def logs(run: Path, follow: bool) -> int:
    """Print the newest log of rank 0: SLURM's, or that of a run by another launcher.

    Args:
        run: the run directory.
        follow: also print new output, until Ctrl-C or the end of the run.

    Raises:
        ConfigError: if the directory holds no run, or the run has no log.
    """
    check_run_directory(run)
    file, by_slurm = _newest_log(run)
    while not file.exists():
        if not follow:
            fix = "wait for it with -f" if by_slurm else "it is written from the start of the training"
            raise ConfigError("RUN", str(run), f"its log {file} does not exist yet", fix)
        time.sleep(_POLL)
    with open(file, errors="replace") as stream, contextlib.suppress(KeyboardInterrupt):
        _print(stream.read())
        # A SLURM job may be requeued: its run ends when it is finished.
        while follow and not attempts.is_finished(run) and (by_slurm or is_running(attempts.heartbeat(run))):
            time.sleep(_POLL)
            _print(stream.read())
        if follow:
            time.sleep(_LAST_LINES)
            _print(stream.read())
    return 0


def _newest_log(run: Path) -> tuple[Path, bool]:
    """The log that was written last, and whether it is SLURM's. It may not exist yet."""
    local_log = run / run_paths.RANK0_LOG
    tries, waiting = attempts.read(run), attempts.waiting(run)
    if waiting is not None:
        slurm, since = Path(waiting["log"]), float(waiting["time"])
    elif tries:
        slurm, since = Path(tries[-1].log), tries[-1].time
    else:
        return local_log, False
    if local_log.exists() and local_log.stat().st_mtime > (slurm.stat().st_mtime if slurm.exists() else since):
        return local_log, False
    return slurm, True


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
