"""The faults of `scripts.chaos`: each kind is a function that disturbs a running launch, and says what it did."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from scripts.chaos_nodes import Nodes
from scripts.chaos_subject import Launch, Subject

_CONNECTIONS = 300
_FLOOD_SECONDS = 2.0


@dataclass
class Machine:
    """What this machine offers for faults."""

    disk: Path  # runs and cache
    has_own_disk: bool  # which is small and can be filled
    has_nodes: bool
    clock: Path | None  # the library that moves it
    nodes: Nodes | None = None  # of the launch


@dataclass
class Disturbance:
    """What a fault did. `after` is called when the launch has ended, or at once if the run is expected to go on."""

    text: str
    goes_on: bool = False
    after: Callable[[], None] = lambda: None


Fault = Callable[[Launch, Subject, Machine, random.Random], Disturbance]


def launcher(launch: Launch, subject: Subject, machine: Machine, rng: random.Random) -> Disturbance:
    """kill -9 of the launcher: its ranks must end by themselves."""
    launch.processes()
    launch.process.kill()
    return Disturbance("killed the launcher")


def rank(launch: Launch, subject: Subject, machine: Machine, rng: random.Random) -> Disturbance:
    """kill -9 of one rank."""
    ranks = _wait_for(launch, launch.ranks)
    index = rng.randrange(len(ranks)) if ranks else 0
    if ranks:
        _kill(ranks[index])
    return Disturbance(f"killed rank {index} of {len(ranks)}")


def worker(launch: Launch, subject: Subject, machine: Machine, rng: random.Random) -> Disturbance:
    """kill -9 of one data worker."""
    workers = _wait_for(launch, launch.workers)
    if workers:
        _kill(rng.choice(workers))
    return Disturbance(f"killed one of {len(workers)} data workers")


def node(launch: Launch, subject: Subject, machine: Machine, rng: random.Random) -> Disturbance:
    """A node loses power: of two, or without namespaces the only one."""
    launch.processes()
    if machine.nodes is None:
        launch.kill()
        return Disturbance("killed all processes at once")
    index = rng.randrange(2)
    machine.nodes.kill(index)
    return Disturbance(f"powered node {index} of 2 off")


def link(launch: Launch, subject: Subject, machine: Machine, rng: random.Random) -> Disturbance:
    """The link between two nodes is cut, for a moment or for good."""
    assert machine.nodes is not None
    nodes = machine.nodes
    nodes.cut(True)
    if rng.random() < 0.25:
        time.sleep(1)
        nodes.cut(False)
        return Disturbance("cut the link for 1 s", goes_on=True)
    return Disturbance("cut the link")


def disk(launch: Launch, subject: Subject, machine: Machine, rng: random.Random) -> Disturbance:
    """The disk of the run is full; where it cannot be filled, rank 0 may not write to files any more."""
    if not machine.has_own_disk:
        for one in _wait_for(launch, launch.ranks)[:1]:
            resource.prlimit(one.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        return Disturbance("no more writes by rank 0 (RLIMIT_FSIZE)")
    filler = machine.disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return Disturbance("filled the disk", after=lambda: filler.unlink(missing_ok=True))


def truncated(launch: Launch, subject: Subject, machine: Machine, rng: random.Random) -> Disturbance:
    """A power failure that leaves a file truncated: one that the system had not yet brought to the disk, or a damaged one."""
    launch.kill()
    launch.wait(30)
    files = list((subject.run / "logs").glob("heartbeat.json"))
    cache = [path for path in (machine.disk / "cache").rglob("*") if path.is_file() and path.stat().st_size > 0]
    published = subject.checkpoints()
    kind = rng.choice(["checkpoint", "checkpoint", "metrics", "cache", "heartbeat"])
    if kind == "metrics" and (tail := _tail(subject)):
        begin, end = tail
        at = rng.randrange(begin, end)
        os.truncate(subject.run / "metrics.jsonl", at)
        return Disturbance(f"power failure, metrics.jsonl cut by {end - at} bytes")
    if kind == "checkpoint" and len(published) > 1:
        files = sorted(published[-1].iterdir())
    elif kind != "heartbeat" and cache:
        files = sorted(cache)
    if not files:
        return Disturbance("power failure before there was a file to truncate")
    file = rng.choice(files)
    size = file.stat().st_size
    os.truncate(file, rng.randrange(max(1, size)))
    return Disturbance(f"power failure, {file.parent.name}/{file.name} truncated")


def clock(launch: Launch, subject: Subject, machine: Machine, rng: random.Random) -> Disturbance:
    """The clock of all processes jumps (`chaos_clock.c`); monotonic clocks do not, as on a real machine."""
    seconds = rng.choice([-1, 1]) * rng.choice([60, 3600, 86400, 400 * 86400])
    with open(subject.clock, "r+b") as file:  # in place: the processes have mapped it
        file.write(struct.pack("@l", seconds))
    return Disturbance(f"moved the clock by {seconds:+,} s", goes_on=True)


def store(launch: Launch, subject: Subject, machine: Machine, rng: random.Random) -> Disturbance:
    """A stranger opens hundreds of connections to the run's store, and sends garbage."""
    ranks = _wait_for(launch, launch.ranks)
    if not ranks:
        return Disturbance("flooded nothing: the launch had ended", goes_on=True)
    environment = ranks[0].environ()
    address = (environment["MASTER_ADDR"], int(environment["MASTER_PORT"]))
    sockets: list[socket.socket] = []
    sent = 0
    deadline = time.monotonic() + _FLOOD_SECONDS
    while len(sockets) < _CONNECTIONS and time.monotonic() < deadline:
        try:
            sockets.append(socket.create_connection(address, 1))
            sockets[-1].settimeout(0.2)
            sent += sockets[-1].send(rng.randbytes(rng.randrange(1, 4096)))
        except OSError:
            continue
    time.sleep(max(0.0, min(1.0, deadline - time.monotonic())))
    for one in sockets:
        one.close()
    return Disturbance(f"{len(sockets)} connections to the store, {sent:,} bytes of garbage", goes_on=True)


#: kind -> (the fault, the mode of the launch that it needs)
FAULTS: dict[str, tuple[Fault, str]] = {
    "launcher": (launcher, "local"),
    "rank": (rank, "local"),
    "node": (node, "nodes"),
    "worker": (worker, "local"),
    "link": (link, "nodes"),
    "disk": (disk, "local"),
    "truncated": (truncated, "local"),
    "clock": (clock, "clock"),
    "store": (store, "local"),
}


def skipped(machine: Machine) -> dict[str, str]:
    """The kinds that this machine has no means for, with the reason."""
    reasons = {}
    if not machine.has_nodes:
        reasons["link"] = "no network namespaces"
    if machine.clock is None:
        reasons["clock"] = "no C compiler for chaos_clock.c"
    return reasons


def build_clock(folder: Path) -> Path | None:
    """Compile `chaos_clock.c`; None without a compiler."""
    library, source = folder / "chaos_clock.so", Path(__file__).with_name("chaos_clock.c")
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None or sys.platform != "linux":
        return None
    done = subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], capture_output=True)
    return library if done.returncode == 0 else None


def mode(kind: str, machine: Machine) -> str:
    """How the launch that a fault of this kind disturbs is started."""
    needed = FAULTS[kind][1]
    return "local" if needed == "nodes" and not machine.has_nodes else needed


def _wait_for(launch: Launch, find: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    """What `find` finds as soon as it is not empty, or when the launch has ended."""
    while not (found := find()) and launch.running:
        time.sleep(0.05)
    return found


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def _tail(subject: Subject) -> tuple[int, int] | None:
    """The part of metrics.jsonl that a power failure may lose: what was written after the newest checkpoint was saved."""
    try:
        data = (subject.run / "metrics.jsonl").read_bytes()
    except OSError:
        return None
    if subject.finished:
        return None
    published = subject.checkpoints()
    saved = int(published[-1].name.removeprefix("step-")) if published else 0
    begin = at = 0
    for raw in data.splitlines(keepends=True):
        at += len(raw)
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if line.get("event") == "train" and line["step"] <= saved:
            begin = at
    return (begin, len(data)) if begin < len(data) else None
