"""Starts `bellwether.launcher.ranks` on each host of a list over ssh: for machines without a scheduler."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from bellwether.launcher import console
from bellwether.launcher.forwarded_env import forwarded_env, header, remote_command
from bellwether.trainer import rendezvous, signals
from bellwether.trainer.process_info import SECRET

log = logging.getLogger(__name__)

_OPTIONS = ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=10", "ServerAliveCountMax=3")


def commands(hosts: Sequence[str], nproc: int, arguments: Sequence[str], port: int) -> list[list[str]]:
    """The ssh command for each host. The first host is the master.

    Args:
        nproc: processes per host.
        arguments: of ``python -m bellwether.trainer``.
        port: MASTER_PORT, on the first host.

    ``BELLWETHER_SSH`` replaces ``ssh`` where it needs options, as in ``ssh -F my.conf``.
    """
    # The first host as the list names it: the others may not know its own host name.
    master = hosts[0].rpartition("@")[2]
    client = shlex.split(os.environ.get("BELLWETHER_SSH", "ssh"))
    options = [word for option in _OPTIONS for word in ("-o", option)]
    found = []
    for index, host in enumerate(hosts):
        ranks = [
            sys.executable, "-m", "bellwether.launcher.ranks", f"--node={index}", f"--nodes={len(hosts)}",
            f"--nproc={nproc}", f"--address={master}", f"--port={port}", "--", *arguments,
        ]  # fmt: skip
        remote = remote_command(os.getcwd(), [sys.executable, "-m", "bellwether.launcher.remote", *ranks])
        found.append([*client, *options, host, remote])
    return found


def train(hosts: Sequence[str], nproc: int, arguments: Sequence[str], dry_run: bool) -> int:
    """Run the commands, and end all once one fails. The first host writes to this terminal, the others to logs/."""
    console.setup()
    port = next(rendezvous.ports(os.getpid() + int(time.time())))
    lines = commands(hosts, nproc, arguments, port)
    if dry_run:
        for line in lines:
            print(shlex.join(line))
        return 0
    variables = header({**forwarded_env(os.environ), SECRET: rendezvous.new_secret()})
    folder = Path("logs")
    folder.mkdir(exist_ok=True)
    processes: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        for host, line in zip(hosts, lines, strict=True):
            out: IO[bytes] | None = None
            if host != hosts[0]:
                out = stack.enter_context(open(folder / f"ssh-{host.rpartition('@')[2]}.log", "ab"))
            # `supervise` on the host reads the pipe: when this process ends, the pipe closes and the ranks are stopped.
            process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True)
            processes.append(process)
            _write(process, variables)
        return _wait(hosts, processes)


def _wait(hosts: Sequence[str], processes: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all hosts, and forward signals to them. Returns the exit status for the shell."""
    received: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        received.append(number)
        _send_signal(processes, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, forward)
    failed: tuple[str, int] | None = None
    running = True
    while running:
        time.sleep(0.2)
        running = None in [process.poll() for process in processes]  # of all: one that fails need not be the first
        if failed is None:
            failed = next(((h, p.returncode) for h, p in zip(hosts, processes, strict=True) if p.returncode), None)
            if failed is not None:
                _send_signal(processes, signal.SIGTERM)
    if received:
        log.info("stopped; the same command resumes from the newest checkpoint")
        return 130 if received[0] == signal.SIGINT else signals.SAVED
    if failed is None:
        return 0
    host, code = failed
    output = "" if host == hosts[0] else f"; its output is in logs/ssh-{host.rpartition('@')[2]}.log"
    log.error("%s exited with status %d%s", host, code, output)
    return code if 0 < code < 255 else 1


def _send_signal(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    """Send a signal's number through the pipes to `supervise`."""
    for process in processes:
        if process.poll() is None:
            _write(process, f"{number}\n".encode())


def _write(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # it has ended, which `_wait` reports
        process.stdin.write(data)
        process.stdin.flush()


def supervise(command: Sequence[str]) -> int:
    """Run a command on the remote host.

    Signal numbers from standard input are sent to the command. When standard input closes, because the connection or the
    launcher is gone, the command gets SIGTERM.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def forward() -> None:
        for line in sys.stdin:
            if line.strip().isdigit():
                process.send_signal(int(line))
        process.send_signal(signal.SIGTERM)

    threading.Thread(target=forward, daemon=True).start()
    status = process.wait()
    if status:
        log.error("%s: the ranks' launcher exited with status %d", socket.gethostname(), status)
    return status if status >= 0 else 128 - status
