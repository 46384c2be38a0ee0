"""Starts Bellwether in a subprocess, and watches its runs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.precision import subprocess_path

ROOT = Path(__file__).parents[2]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def start(space: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    path = subprocess_path(*filter(None, [environment.pop("PYTHONPATH", "")]), ROOT)
    return subprocess.Popen(
        command(*arguments), cwd=space, env={**os.environ, **environment, "PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=seconds)
    return process.returncode, out, error


def steps(space: Path, name: str) -> list[int]:
    file = space / "runs" / name / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line["step"] for line in lines if line["event"] == "train"]


def wait_for_step(process: subprocess.Popen[str], space: Path, name: str, step: int) -> None:
    deadline = time.monotonic() + 240
    while max(steps(space, name), default=0) < step:
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.2)


def listening_sockets(root: int) -> dict[str, list[tuple[str, int]]]:
    """The listening sockets of a process and all below it, by kind: tcp, udp, and unix with an address outside the file system."""
    found: dict[str, list[tuple[str, int]]] = {"tcp": [], "udp": [], "abstract": []}
    launcher = psutil.Process(root)
    for process in [launcher, *launcher.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for socket in process.net_connections(kind="all"):
                if isinstance(socket.laddr, str):
                    if socket.laddr.startswith(("@", "\0")):
                        found["abstract"].append((socket.laddr, process.pid))
                elif socket.status == psutil.CONN_LISTEN:
                    found["tcp"].append((socket.laddr.ip, socket.laddr.port))
                elif socket.status == psutil.CONN_NONE and not socket.raddr:
                    found["udp"].append((socket.laddr.ip, socket.laddr.port))
    return found


def ranks_of(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        environment = child.environ()
        if "bellwether.trainer" in child.cmdline() and "RANK" in environment:
            found[int(environment["RANK"])] = child
    return found
