"""torchrun on each host of a list, over ssh: for machines without a scheduler."""

from __future__ import annotations

import contextlib
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

from bellwether.launcher.forwarded_env import forwarded_env
from bellwether.trainer import rendezvous, signals

_OPTIONS = [
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=10",
    "-o",
    "ServerAliveInterval=10",
    "-o",
    "ServerAliveCountMax=3",
]


def commands(hosts: Sequence[str], each: int, arguments: Sequence[str], port: int) -> list[list[str]]:
    """What is run for each host, the first of which all ranks meet on.

    Args:
        each: processes a host.
        port: on the first host.

    ``BELLWETHER_SSH`` stands for ``ssh`` where that needs options, as in ``ssh -F my.conf``.
    """
    # Its own name for the first host may be none that the others know.
    master = hosts[0].rpartition("@")[2]
    environment = forwarded_env(os.environ)
    found = []
    for index, host in enumerate(hosts):
        torchrun = [
            sys.executable, "-m", "torch.distributed.run", f"--nnodes={len(hosts)}", f"--node-rank={index}",
            f"--nproc-per-node={each}", f"--master-addr={master}", f"--master-port={port}", "--shutdown-timeout=120",
            "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2", "-m", "bellwether.trainer", *arguments,
        ]  # fmt: skip
        settings = " ".join(f"{key}={shlex.quote(value)}" for key, value in environment.items())
        there = f"cd {shlex.quote(os.getcwd())} && exec env {settings} {sys.executable} -m bellwether.launcher.remote {shlex.join(torchrun)}"
        found.append([*shlex.split(os.environ.get("BELLWETHER_SSH", "ssh")), *_OPTIONS, host, there])
    return found


def train(hosts: Sequence[str], each: int, arguments: Sequence[str], dry_run: bool) -> int:
    """Start them, wait, and end all as soon as one fails. The first host writes to this terminal, the others to logs/."""
    port = next(rendezvous.ports(os.getpid() + int(time.time())))
    lines = commands(hosts, each, arguments, port)
    if dry_run:
        for line in lines:
            print(shlex.join(line))
        return 0
    folder = Path("logs")
    folder.mkdir(exist_ok=True)
    processes: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        for host, line in zip(hosts, lines, strict=True):
            out: IO[bytes] | None = None
            if host != hosts[0]:
                out = stack.enter_context(open(folder / f"ssh-{host.rpartition('@')[2]}.log", "ab"))
            # The pipe is the lifeline: where it ends, with this process, the other end stops its ranks.
            processes.append(
                subprocess.Popen(line, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True)
            )
        return _wait(hosts, processes)


def _wait(hosts: Sequence[str], processes: list[subprocess.Popen[bytes]]) -> int:
    told: list[int] = []

    def tell(number: int, _: FrameType | None) -> None:
        told.append(number)
        _tell(processes, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, tell)
    failed: tuple[str, int] | None = None
    running = True
    while running:
        time.sleep(0.2)
        running = any(process.poll() is None for process in processes)
        if failed is None:
            failed = next(((h, p.returncode) for h, p in zip(hosts, processes, strict=True) if p.returncode), None)
            if failed is not None:
                _tell(processes, signal.SIGTERM)
    if told:
        print("bellwether: stopped; the same command goes on from the newest checkpoint", file=sys.stderr)
        return 130 if told[0] == signal.SIGINT else signals.SAVED
    if failed is None:
        return 0
    host, code = failed
    where = "" if host == hosts[0] else f"; what it printed is in logs/ssh-{host.rpartition('@')[2]}.log"
    print(f"bellwether: {host} ended with status {code}{where}", file=sys.stderr)
    return code if 0 < code < 255 else 1


def _tell(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    """Send a signal's number through the pipes."""
    for process in processes:
        if process.poll() is None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.write(f"{number}\n".encode())
                process.stdin.flush()


def guard(command: Sequence[str]) -> int:
    """The other end: run a command, pass on the signals whose numbers come in, and end it where nothing can come any more."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def listen() -> None:
        for line in sys.stdin:
            if line.strip().isdigit():
                process.send_signal(int(line))
        process.send_signal(signal.SIGTERM)

    threading.Thread(target=listen, daemon=True).start()
    status = process.wait()
    if status:
        print(f"bellwether: {socket.gethostname()}: torchrun ended with status {status}", file=sys.stderr)
    return status if status >= 0 else 128 - status
