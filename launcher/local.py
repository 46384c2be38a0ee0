"""Training on this machine: N processes of ``python -m bellwether.trainer`` through torchrun's API."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from bellwether.trainer import run_paths, signals
from bellwether.trainer.config import ConfigError, load, phases
from bellwether.trainer.phases import splits

_SAVING = 120  # seconds that ranks have to save after a signal


def train(config: str, overrides: Sequence[str], nproc: int | None) -> int:
    """Check what can be checked, start the processes, wait. Returns the exit status for the shell.

    Rank 0 writes to this terminal, the others to files. If a rank fails, all are ended and its error is shown first.
    """
    checked = load(config, overrides)
    import torch

    if nproc is None:
        nproc = torch.cuda.device_count() if checked.engine.device != "cpu" and torch.cuda.is_available() else 1
    elif checked.engine.device != "cpu" and 0 < torch.cuda.device_count() < nproc:
        problem = f"there are {torch.cuda.device_count()} GPUs here"
        raise ConfigError("--nproc", nproc, problem, "start one process a GPU, or write engine.device=cpu")
    splits(phases(checked), nproc)

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    # What it logs of a failure, we tell in our own words.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logs = run_paths.directory(checked) / "logs"
    os.environ["BELLWETHER_WORLD_SIZE"] = str(nproc)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // nproc)))
    launch = LaunchConfig(
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
        shutdown_timeout=_SAVING,
    )
    try:
        launch_agent(launch, sys.executable, ["-m", "bellwether.trainer", config, *overrides])
    except ChildFailedError as error:
        return _explain(error, logs)
    except (SignalException, KeyboardInterrupt) as error:
        print("bellwether: stopped; the same command goes on from the newest checkpoint", file=sys.stderr)
        asked = getattr(error, "sigval", signal.SIGINT) in (signal.SIGTERM, signal.SIGUSR2)
        return signals.SAVED if asked else 130
    return 0


def _cores() -> int:
    """The cores that this process may use, which a scheduler may have made fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _explain(error: Exception, logs: Path) -> int:
    """The failure that came first, and why. Others are its consequence."""
    failures = error.failures  # type: ignore[attr-defined]

    def order(rank: int) -> tuple[bool, float]:
        # A process that was killed leaves no time of its own; the others fail when their connection to it breaks.
        failure = failures[rank]
        killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
        try:  # torch's timestamps are whole seconds, rounded down, and a rank can follow another within one
            return not killed, Path(failure.error_file).stat().st_mtime
        except OSError:
            return not killed, failure.timestamp + 0.999

    first = min(failures, key=order)
    failure = failures[first]
    if failure.exitcode == signals.SAVED:  # the signal went to a rank, not to bellwether
        return signals.SAVED
    if (
        failure.exitcode == 2
    ):  # a user's error; rank 0 has told, unless it is another rank's own, left in its error file
        own = isinstance(failure.error_file_data.get("message"), dict)
        if own and (0 not in failures or failures[0].exitcode != 2):
            print(f"bellwether: rank {first}: {_message(failure, brief=True)}", file=sys.stderr)
        return 2
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = "; out of memory is the usual reason: lower batch.micro" if name == "SIGKILL" else ""
        print(f"bellwether: rank {first} was killed by {name}{hint}", file=sys.stderr)
    else:
        print(f"bellwether: rank {first} failed:\n{_message(failure)}", file=sys.stderr)
    if first != 0:
        print(f"bellwether: what it printed is below {logs}", file=sys.stderr)
    others = sorted(set(failures) - {first})
    if others:
        print(f"bellwether: ranks {', '.join(map(str, others))} were ended because of it", file=sys.stderr)
    return 1


def _message(failure: object, brief: bool = False) -> str:
    data = failure.error_file_data  # type: ignore[attr-defined]
    message = data.get("message", "") if isinstance(data, dict) else ""
    if isinstance(message, dict) and brief:
        return str(message.get("message", "")).partition(": ")[2]  # without the class
    if isinstance(message, dict):
        return str(message.get("extraInfo", {}).get("py_callstack") or message.get("message", "")).rstrip()
    return str(message) or f"exit status {failure.exitcode}"  # type: ignore[attr-defined]
