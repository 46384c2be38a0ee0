"""``bellwether train``: starts N processes of ``python -m bellwether.trainer`` on this machine, through torchrun's API."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bellwether.launcher import console
from bellwether.trainer import run_paths, signals
from bellwether.trainer.config import Config, ConfigError, load, phases
from bellwether.trainer.phases import splits

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig

log = logging.getLogger(__name__)

_SAVE_SECONDS = 120  # for ranks to save a checkpoint after a signal


def train(config: str, overrides: Sequence[str], nproc: int | None) -> int:
    """Check the config, start the processes and wait for them. Returns the exit status for the shell.

    Rank 0 writes to this terminal, the others to files. If a rank fails, all are ended, and its error is printed.

    Args:
        nproc: number of processes; default: one per GPU, or one.

    Raises:
        ConfigError: if the config is wrong or does not fit this machine.
    """
    console.setup()
    checked = load(config, overrides)
    nproc = _process_count(checked, nproc)
    splits(phases(checked), nproc)

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import launch_agent

    # `_report_failure` prints what torch would log about a failure.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logs = run_paths.directory(checked) / "logs"
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, _cores() // nproc)))
    try:
        with _environment(BELLWETHER_WORLD_SIZE=str(nproc), OMP_NUM_THREADS=threads):
            launch_agent(_launch_config(nproc, logs), sys.executable, ["-m", "bellwether.trainer", config, *overrides])
    except ChildFailedError as error:
        return _report_failure(error, logs)
    except (SignalException, KeyboardInterrupt) as error:
        log.info("stopped; the same command resumes from the newest checkpoint")
        saved = getattr(error, "sigval", signal.SIGINT) in (signal.SIGTERM, signal.SIGUSR2)
        return signals.SAVED if saved else 130
    return 0


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set variables for the processes started inside; the caller's own runs must not inherit them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _process_count(config: Config, nproc: int | None) -> int:
    import torch

    gpus = torch.cuda.device_count() if config.engine.device != "cpu" else 0
    if nproc is None:
        return gpus if gpus and torch.cuda.is_available() else 1
    if 0 < gpus < nproc:
        problem = f"this machine has {gpus} GPUs"
        raise ConfigError("--nproc", nproc, problem, "start one process per GPU, or set engine.device=cpu")
    return nproc


def _launch_config(nproc: int, logs: Path) -> LaunchConfig:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex[:8],
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(str(logs), redirects=dict.fromkeys(range(1, nproc), Std.ALL)),
        log_line_prefix_template=None,
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2",
        shutdown_timeout=_SAVE_SECONDS,
    )


def _cores() -> int:
    """The cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _report_failure(error: ChildFailedError, logs: Path) -> int:
    """Log the error of the rank that failed first; the others failed because of it. Returns the exit status for the shell."""
    failures = error.failures
    first = min(failures, key=lambda rank: _order(failures[rank]))
    failure = failures[first]
    if failure.exitcode == signals.SAVED:  # the signal was sent to a rank, not to bellwether
        return signals.SAVED
    if failure.exitcode == 2:
        # A user's error, which rank 0 has printed, unless only another rank has met it and left it in its error file.
        own = isinstance(failure.error_file_data.get("message"), dict)
        if own and (0 not in failures or failures[0].exitcode != 2):
            log.error("rank %d: %s", first, _message(failure, brief=True))
        return 2
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = "; the usual reason is too little memory: lower batch.micro" if name == "SIGKILL" else ""
        log.error("rank %d was killed by %s%s", first, name, hint)
    else:
        log.error("rank %d failed:\n%s", first, _message(failure))
    if first != 0:
        log.error("its output is below %s", logs)
    others = sorted(set(failures) - {first})
    if others:
        log.error("ranks %s were ended because of it", ", ".join(map(str, others)))
    return 1


def _order(failure: ProcessFailure) -> tuple[bool, float]:
    """Sort key that puts the failure that came first before its consequences."""
    # A killed process leaves no error file; the others fail when their connection to it breaks.
    killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
    try:  # torch's timestamps are whole seconds, rounded down, and a second rank can fail within the same one
        return not killed, Path(failure.error_file).stat().st_mtime
    except OSError:
        return not killed, failure.timestamp + 0.999


def _message(failure: ProcessFailure, brief: bool = False) -> str:
    """A rank's error: its traceback, or with ``brief`` its message."""
    data = failure.error_file_data
    message = data.get("message", "") if isinstance(data, dict) else ""
    if isinstance(message, dict) and brief:
        return str(message.get("message", "")).partition(": ")[2]  # without the class
    if isinstance(message, dict):
        return str(message.get("extraInfo", {}).get("py_callstack") or message.get("message", "")).rstrip()
    return str(message) or f"exit status {failure.exitcode}"
