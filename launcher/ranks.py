"""Starts the ranks of one machine and waits for them. Every machine of a run has the same number of ranks.

    python -m bellwether.launcher.ranks --node N --nodes N --nproc N --address HOST --port N CONFIG [key=value ...]

is what `bellwether.launcher.ssh` runs on each host, with the run's secret in the environment. The first machine serves the store.
torch's elastic agent is not used: its rendezvous listens on all interfaces and unpickles what it reads from its store.
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
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException, start_processes
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from bellwether.launcher import console
from bellwether.trainer import run_paths, signals, store
from bellwether.trainer.config import load
from bellwether.trainer.process_info import SECRET

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_SAVE_SECONDS = 120  # for ranks to save a checkpoint after a signal
_RANKS = "ranks"  # folder of the ranks' files
_OWN_FILES = re.compile(r"\d+/(stdout\.log|stderr\.log|error\.json)")
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2"


@dataclass(frozen=True)
class Machine:
    """The ranks of this machine, and the store that all ranks of the run connect to."""

    nproc: int
    address: str
    port: int
    node: int = 0
    nodes: int = 1

    def environment(self, local_rank: int, secret: str) -> dict[str, str]:
        """The variables of one rank."""
        world_size = str(self.nodes * self.nproc)
        return {
            "RANK": str(self.node * self.nproc + local_rank), "LOCAL_RANK": str(local_rank), "WORLD_SIZE": world_size,
            "LOCAL_WORLD_SIZE": str(self.nproc), "MASTER_ADDR": self.address, "MASTER_PORT": str(self.port),
            store.SERVED: "True", SECRET: secret, "BELLWETHER_WORLD_SIZE": world_size,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, _cores() // self.nproc))),
        }  # fmt: skip


def run(machine: Machine, secret: str, logs: Path, arguments: Sequence[str], keep: int) -> int:
    """Start the ranks and wait for them. Returns the exit status for the shell.

    Local rank 0 writes to this process's output, the others to files. If a rank fails, all are ended, and its error is printed.

    Args:
        logs: of the run; the ranks' files are in a folder of ``ranks/`` in it.
        arguments: of ``python -m bellwether.trainer``.
        keep: number of newest starts on this machine whose files are kept.
    """
    own_folders = re.compile(rf"\d{{8}}-\d{{6}}-node{machine.node}-[0-9a-f]{{8}}")
    run_paths.prune(logs / _RANKS, own_folders, _OWN_FILES, keep - 1)
    folder = logs / _RANKS / f"{time.strftime('%Y%m%d-%H%M%S')}-node{machine.node}-{uuid.uuid4().hex[:8]}"
    try:
        return _run(machine, secret, folder, arguments)
    finally:
        run_paths.remove_files(folder, _OWN_FILES, only_empty=True)


def _run(machine: Machine, secret: str, folder: Path, arguments: Sequence[str]) -> int:
    # `report_failure` prints what torch would log about a failure.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    local_ranks = range(machine.nproc)
    try:
        with _environment(TORCHELASTIC_SIGNALS_TO_HANDLE=_SIGNALS):
            processes = start_processes(
                "trainer", sys.executable, dict.fromkeys(local_ranks, ("-m", "bellwether.trainer", *arguments)),
                {rank: machine.environment(rank, secret) for rank in local_ranks}, _Logs(str(folder)),
            )  # fmt: skip
        try:
            result = processes.wait(period=_POLL_SECONDS)
        except SignalException as error:
            processes.close(error.sigval, _SAVE_SECONDS)
            raise
        except ValueError as error:  # torch reads the ranks' error files, and a full disk leaves empty ones
            processes.close()
            log.error("a rank failed and could not write why (%s): is the disk of %s full?", error, folder)
            return 1
    except (SignalException, KeyboardInterrupt) as error:
        log.info("stopped; the same command resumes from the newest checkpoint")
        saved = getattr(error, "sigval", signal.SIGINT) in (signal.SIGTERM, signal.SIGUSR2)
        return signals.SAVED if saved else 130
    assert result is not None
    first = machine.node * machine.nproc
    failures = {first + rank: failure for rank, failure in result.failures.items()}
    return report_failure(failures, folder) if failures else 0


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set variables of this process inside; the caller's own runs must not inherit them."""
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


class _Logs(LogsSpecs):
    """Each rank's files, in ``<folder>/<local rank>/``, with the modes of the user's umask."""

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        folder = Path(self.root_log_dir)
        found = LogsDest()
        for rank, environment in envs.items():
            own = folder / str(rank)
            own.mkdir(parents=True)
            found.stdouts[rank] = str(own / "stdout.log") if rank else ""
            found.stderrs[rank] = str(own / "stderr.log") if rank else ""
            found.error_files[rank] = environment["TORCHELASTIC_ERROR_FILE"] = str(own / "error.json")
        return found

    @property
    def root_log_dir(self) -> str:
        return str(self._root_log_dir)


def _cores() -> int:
    """The cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def report_failure(failures: Mapping[int, ProcessFailure], logs: Path) -> int:
    """Log the error of the rank that failed first; the others failed because of it. Returns the exit status for the shell.

    Args:
        failures: by rank.
    """
    first = min(failures, key=lambda rank: _order(failures[rank]))
    failure = failures[first]
    if failure.exitcode == signals.SAVED:  # the signal was sent to a rank, not to bellwether
        return signals.SAVED
    if failure.exitcode == signals.LOST:  # it has logged which rank was lost
        return signals.LOST
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
    return signals.IO if failure.exitcode == signals.IO else 1


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
    # Without an error file torch says "<NONE>".
    return str(message) if message and message != "<NONE>" else f"exit status {failure.exitcode}; see its output"


def _serve(machine: Machine) -> TCPStore:
    """Serve the store of all ranks on the address under which the other machines know this one."""
    own = "127.0.0.1" if machine.nodes == 1 else store.listening_address(machine.address)
    return store.serve(own, machine.port)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bellwether.launcher.ranks", description="Starts the ranks of a host."
    )
    for name in ("node", "nodes", "nproc", "port"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    given = parser.parse_args(argv)
    console.setup()
    secret = os.environ.pop(SECRET, "")
    machine = Machine(given.nproc, given.address, given.port, given.node, given.nodes)
    try:
        config = load(given.config, given.overrides)
        logs = run_paths.directory(config) / "logs"
        server = _serve(machine) if machine.node == 0 else None
    except (OSError, ValueError) as error:  # of the config too
        for line in str(error).splitlines():
            log.error("%s", line)
        return 2
    status = run(machine, secret, logs, [given.config, *given.overrides], config.log.keep)
    del server  # it serves until here
    return status


if __name__ == "__main__":
    sys.exit(main())
