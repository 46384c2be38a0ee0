"""Facts about all nodes together: rendezvous, name resolution, shared directory, clocks and bandwidth."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bellwether.launcher.doctor import bandwidth
from bellwether.launcher.doctor.protocol import Facts, Reporter
from bellwether.launcher.doctor.system_probe import addresses, existing
from bellwether.trainer import messages, process_info
from bellwether.trainer import rendezvous as rendezvous_address
from bellwether.trainer.process_info import ProcessInfo
from bellwether.trainer.store import choose_interface, open_store

_PINGS = 10  # clock readings of each node; the one with the shortest round trip counts
_APPEARS = 10.0  # seconds within which all nodes must see a new file; NFS may lag by a few
_SHOWN = 20  # unresolved names in the report


def run(reporter: Reporter, shared: str, nonce: str, size: int | None, limit: float) -> None:
    """Connect to the other nodes and measure. Rank 0 puts the facts into ``reporter.cluster``. Collective.

    Args:
        shared: directory that all nodes should share; rank 0's value is used.
        nonce: name and content of the file that is written there.
        size: number of nodes that were started; None: the launcher's number.
        limit: seconds to connect, and again to measure.

    Raises:
        ValueError: if the launcher's variables contradict one another.
        RuntimeError: if torch could not connect the nodes.
    """
    _use_interface()
    info = process_info.detect()
    if size is not None and info.size != size:
        problem = f"{size} nodes were started, but {info.launcher} gave this one a world size of {info.size}"
        raise ValueError(f"{problem}: is mpi4py built for this mpirun?" if info.launcher == "mpirun" else problem)
    if info.size == 1:
        return
    choose_interface(info)
    facts: Facts = {"kind": "cluster", "size": info.size, "rendezvous": f"{info.address}:{info.port}"}
    facts["interface"] = os.environ.get("GLOO_SOCKET_IFNAME")
    if info.rank == 0:
        reporter.cluster = facts
    reporter.begin(f"connecting to {facts['rendezvous']}", 2 * limit + 10)
    store, facts["missing"] = _rendezvous(info, limit)
    if facts["missing"]:
        return
    reporter.begin("connecting through gloo", limit)
    dist.init_process_group(
        "gloo", store=dist.PrefixStore("gloo", store), rank=info.rank, world_size=info.size,
        timeout=timedelta(seconds=limit),
    )  # fmt: skip
    deadline = time.monotonic() + limit
    probes: dict[str, Callable[[], Any]] = {
        "hosts": lambda: _all_gather(socket.gethostname()),
        "names": lambda: _names(info.rank),
        "shared": lambda: _shared_directory(info.rank, shared, nonce),
        "clocks": lambda: _clocks(info),
        "gloo": lambda: bandwidth.gloo(limit),
        "nccl": lambda: bandwidth.nccl(limit),
    }
    for key, probe in probes.items():
        reporter.begin(f"measuring ({key})", max(1.0, deadline - time.monotonic()))
        facts[key] = probe()
    reporter.begin("disconnecting", 10)
    reporter.send_cluster()
    _disconnect(info, store)


def _use_interface() -> None:
    """Let gloo and NCCL use BELLWETHER_INTERFACE, if this node has it."""
    interface = os.environ.get("BELLWETHER_INTERFACE")
    if not interface:
        return
    try:
        rendezvous_address.address(interface)
    except (ImportError, ValueError):
        return
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", interface)


def _rendezvous(info: ProcessInfo, limit: float) -> tuple[dist.Store, list[int]]:
    """The store that all ranks connect to, and the ranks that did not connect within the limit."""
    store = open_store(info, timedelta(seconds=limit))
    store.set(f"here/{info.rank}", socket.gethostname())
    if info.rank == 0:
        missing = list(range(1, info.size))
        deadline = time.monotonic() + limit
        while missing and time.monotonic() < deadline:
            missing = [rank for rank in missing if not store.check([f"here/{rank}"])]
            time.sleep(0.02)
        store.set("missing", json.dumps(missing))
    else:
        store.wait(["missing"], timedelta(seconds=limit + 5))
        missing = json.loads(store.get("missing"))
    if missing:
        _disconnect(info, store)
    return store, missing


def _disconnect(info: ProcessInfo, store: dist.Store) -> None:
    """Leave the process group. Rank 0 leaves last, because it serves the store."""
    if dist.is_initialized():
        dist.destroy_process_group()
    store.set(f"bye/{info.rank}", "")
    if info.rank == 0:
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            if all(store.check([f"bye/{rank}"]) or not store.check([f"here/{rank}"]) for rank in range(info.size)):
                break
            time.sleep(0.02)
    if "mpi4py.MPI" in sys.modules:
        sys.modules["mpi4py.MPI"].Finalize()  # otherwise mpirun treats this process's exit as a crash


def _all_gather(value: Any) -> list[Any]:
    return messages.all_gather_values(value, torch.device("cpu"))


def _names(rank: int) -> Facts:
    """Host names that do not resolve, as (on this node, that node's name, the error or the loopback address)."""
    own, hosts = socket.gethostname(), _all_gather(socket.gethostname())

    def problem_of(name: str) -> str | None:
        try:
            found = addresses(name)
        except OSError as error:
            return str(error)
        return found[0] if all(address.startswith("127.") or address == "::1" for address in found) else None

    others = sorted(set(hosts) - {own})
    with ThreadPoolExecutor(16) as pool:
        problems = zip(others, pool.map(problem_of, others), strict=True)
        wrong = [(own, name, problem) for name, problem in problems if problem]
    found = [failure for failures in _all_gather(wrong) for failure in failures]
    return {"resolved": len(set(hosts)), "wrong": found[:_SHOWN], "count": len(found)} if rank == 0 else {}


def _shared_directory(rank: int, shared: str, nonce: str) -> Facts:
    """Whether all nodes see a file that rank 0 writes, and after how many seconds."""
    message: tuple[str, str | None] = ("", None)  # path, error
    file = Path(existing(os.path.expanduser(shared)), f".bellwether-doctor-{nonce}")
    if rank == 0:
        message = str(file), None
        try:
            file.write_text(nonce)
        except OSError as error:
            message = str(file), error.strerror or str(error)
    try:
        message = messages.broadcast_value(message, torch.device("cpu"))
        if message[1]:
            return {"dir": str(file.parent), "error": message[1]}
        start = time.monotonic()
        seen = _contains(Path(message[0]), nonce)
        while not seen and time.monotonic() < start + _APPEARS:
            time.sleep(0.1)
            seen = _contains(Path(message[0]), nonce)
        results = _all_gather((socket.gethostname(), seen, round(time.monotonic() - start, 1)))
    finally:
        if rank == 0:
            file.unlink(missing_ok=True)
    unseen = [host for host, seen, _ in results if not seen]
    return {"dir": str(file.parent), "unseen": unseen, "seconds": max(seconds for _, _, seconds in results)}


def _contains(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except OSError:
        return False


def _clocks(info: ProcessInfo) -> list[tuple[str, float, float]]:
    """For each node: its host name, by how many seconds its clock is ahead of rank 0's, and the error bound of that.

    Cristian's algorithm: rank 0 requests the time and assumes that it was read midway between request and reply. The error
    is at most half of the round trip.
    """
    answers: list[tuple[float, float]] = [(0.0, 0.0)]
    now = torch.zeros(1, dtype=torch.float64)
    for other in range(1, info.size):
        if info.rank == other:
            for _ in range(_PINGS):
                dist.recv(now, 0)
                dist.send(now.fill_(time.time()), 0)
        elif info.rank == 0:
            readings = []
            for _ in range(_PINGS):
                sent, start = time.time(), time.perf_counter()
                dist.send(now, other)
                dist.recv(now, other)
                round_trip = time.perf_counter() - start
                readings.append((round_trip / 2, float(now) - sent - round_trip / 2))
            precision, ahead = min(readings)
            answers.append((ahead, precision))
    hosts = _all_gather(socket.gethostname())
    return [(host, *answer) for host, answer in zip(hosts, answers, strict=False)]
