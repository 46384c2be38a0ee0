"""``bellwether logs``: the output of a run's rank 0."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from bellwether.launcher import attempts
from bellwether.launcher.status import check_run_directory
from bellwether.trainer.config import ConfigError


def logs(run: Path, follow: bool) -> int:
    """Print rank 0's log of the newest attempt; with ``follow``, also new output, until Ctrl-C or the end of the run.

    Raises:
        ConfigError: if the directory holds no run, or the run has no log.
    """
    check_run_directory(run)
    tries, waiting = attempts.read(run), attempts.waiting(run)
    if not tries and waiting is None:
        problem = "was not started by slurm/train.sbatch, so rank 0 wrote to its terminal"
        raise ConfigError("RUN", str(run), problem, f"the other ranks' output is below {run / 'logs'}")
    file = Path(tries[-1].log if waiting is None else waiting["log"])
    while not file.exists():
        if not follow:
            raise ConfigError("RUN", str(run), f"its log {file} does not exist yet", "wait for it with -f")
        time.sleep(1)
    with open(file, errors="replace") as stream, contextlib.suppress(KeyboardInterrupt):
        while True:
            text = stream.read()
            sys.stdout.write(text)
            sys.stdout.flush()
            if not text and (not follow or attempts.is_finished(run)):
                break
            time.sleep(0 if text else 0.5)
    return 0
