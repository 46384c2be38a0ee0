"""What only several nodes together can tell: whether they meet, and their names, shared directory, clocks and bandwidth."""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bellwether.launcher.doctor.node import Facts, Watch, addresses, existing
from bellwether.trainer import process_info, rendezvous

_MB = 10**6
_WARM_UP, _SIZE, _SIZE_GPU = 4 * _MB, 64 * _MB, 256 * _MB  # bytes of an all-reduce
_ROUNDS = 3
_PINGS = 10  # of the clocks' questions; the quickest counts
_APPEARS = 10.0  # seconds in which a file must be seen by all; NFS may be some behind
_TOLD = 20  # names that could not be resolved; more of them say nothing new


def run(watch: Watch, shared: str, nonce: str, size: int | None, limit: float) -> None:
    """Meet the other nodes and measure; rank 0 puts what was found into ``watch.report``. Collective.

    Args:
        shared: directory that all should share; rank 0's counts.
        nonce: what the file is called, and says.
        size: how many nodes were asked; None: as many as the launcher says.
        limit: seconds for meeting, and again for measuring.

    Raises:
        ValueError: if what the launcher set makes no sense.
        RuntimeError: if torch could not connect the nodes.
    """
    if (interface := os.environ.get("BELLWETHER_INTERFACE")) and _exists(interface):
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", interface)
    place = process_info.detect()
    if size is not None and place.size != size:
        problem = f"{size} nodes were started, but this one was told ({place.launcher}) of {place.size}"
        raise ValueError(f"{problem}: is mpi4py built for this mpirun?" if place.launcher == "mpirun" else problem)
    if place.size == 1:
        return
    report: Facts = {"kind": "group", "size": place.size, "meeting": f"{place.address}:{place.port}"}
    report["interface"] = os.environ.get("GLOO_SOCKET_IFNAME")
    if place.rank == 0:
        watch.report = report
    watch.stage(f"meeting at {report['meeting']}", 2 * limit + 10)
    store, report["missing"] = _meet(place, limit)
    if report["missing"]:
        return
    watch.stage("connecting through gloo", limit)
    dist.init_process_group(
        "gloo", store=dist.PrefixStore("gloo", store), rank=place.rank, world_size=place.size,
        timeout=timedelta(seconds=limit),
    )  # fmt: skip
    deadline = time.monotonic() + limit
    steps: dict[str, Callable[[], Any]] = {
        "hosts": lambda: _gathered(socket.gethostname()),
        "names": lambda: _names(place.rank),
        "shared": lambda: _share(place.rank, shared, nonce),
        "clocks": lambda: _clocks(place),
        "gloo": lambda: _bandwidth(torch.device("cpu"), None, _SIZE, limit),
        "nccl": lambda: _nccl(limit),
    }
    for key, measure in steps.items():
        watch.stage(f"measuring ({key})", max(1.0, deadline - time.monotonic()))
        report[key] = measure()
    watch.stage("leaving", 10)
    watch.tell_report()
    _leave(place, store)


def _exists(interface: str) -> bool:
    try:
        rendezvous.address(interface)
    except (ImportError, ValueError):
        return False
    return True


def _meet(place: process_info.ProcessInfo, limit: float) -> tuple[dist.Store, list[int]]:
    """The store at which all meet, and the ranks that have not come within the limit."""
    store = dist.TCPStore(
        place.address, place.port, place.size, place.rank == 0, timedelta(seconds=limit), wait_for_workers=False
    )
    store.set(f"here/{place.rank}", socket.gethostname())
    if place.rank == 0:
        missing = list(range(1, place.size))
        deadline = time.monotonic() + limit
        while missing and time.monotonic() < deadline:
            missing = [rank for rank in missing if not store.check([f"here/{rank}"])]
            time.sleep(0.02)
        store.set("missing", json.dumps(missing))
    else:
        store.wait(["missing"], timedelta(seconds=limit + 5))
        missing = json.loads(store.get("missing"))
    if missing:
        _leave(place, store)
    return store, missing


def _leave(place: process_info.ProcessInfo, store: dist.Store) -> None:
    """Rank 0 last, because the store is its."""
    if dist.is_initialized():
        dist.destroy_process_group()
    store.set(f"bye/{place.rank}", "")
    if place.rank == 0:
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            if all(store.check([f"bye/{rank}"]) or not store.check([f"here/{rank}"]) for rank in range(place.size)):
                break
            time.sleep(0.02)
    if "mpi4py.MPI" in sys.modules:
        sys.modules["mpi4py.MPI"].Finalize()  # or mpirun takes this process's end for a crash


def _gathered(value: Any) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _names(rank: int) -> Facts:
    """Which names do not resolve where: as (on this node, that one's name, what came instead)."""
    own, hosts = socket.gethostname(), _gathered(socket.gethostname())

    def look(name: str) -> str | None:
        try:
            found = addresses(name)
        except OSError as error:
            return str(error)
        return found[0] if all(address.startswith("127.") or address == "::1" for address in found) else None

    others = sorted(set(hosts) - {own})
    with ThreadPoolExecutor(16) as pool:
        wrong = [(own, name, problem) for name, problem in zip(others, pool.map(look, others), strict=True) if problem]
    found = [failure for failures in _gathered(wrong) for failure in failures]
    return {"asked": len(set(hosts)), "wrong": found[:_TOLD], "count": len(found)} if rank == 0 else {}


def _share(rank: int, shared: str, nonce: str) -> Facts:
    """Whether a file that rank 0 writes is there for all."""
    told: list[Any] = [None, None]
    file = Path(existing(os.path.expanduser(shared)), f".bellwether-doctor-{nonce}")
    if rank == 0:
        told[0] = str(file)
        try:
            file.write_text(nonce)
        except OSError as error:
            told[1] = error.strerror or str(error)
    try:
        dist.broadcast_object_list(told)
        if told[1]:
            return {"dir": str(file.parent), "error": told[1]}
        start = time.monotonic()
        seen = _reads(Path(told[0]), nonce)
        while not seen and time.monotonic() < start + _APPEARS:
            time.sleep(0.1)
            seen = _reads(Path(told[0]), nonce)
        looks = _gathered((socket.gethostname(), seen, round(time.monotonic() - start, 1)))
    finally:
        if rank == 0:
            file.unlink(missing_ok=True)
    unseen = [host for host, seen, _ in looks if not seen]
    return {"dir": str(file.parent), "unseen": unseen, "seconds": max(seconds for _, _, seconds in looks)}


def _reads(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except OSError:
        return False


def _clocks(place: process_info.ProcessInfo) -> list[tuple[str, float, float]]:
    """Of each node: its name, the seconds that its clock is ahead of rank 0's, and how far off that may be.

    Rank 0 asks for the time and takes it for that of the middle between question and answer (Cristian's algorithm); the
    error is at most half of the way there and back.
    """
    answers: list[tuple[float, float]] = [(0.0, 0.0)]
    now = torch.zeros(1, dtype=torch.float64)
    for other in range(1, place.size):
        if place.rank == other:
            for _ in range(_PINGS):
                dist.recv(now, 0)
                dist.send(now.fill_(time.time()), 0)
        elif place.rank == 0:
            tries = []
            for _ in range(_PINGS):
                asked, begun = time.time(), time.perf_counter()
                dist.send(now, other)
                dist.recv(now, other)
                way = time.perf_counter() - begun
                tries.append((way / 2, float(now) - asked - way / 2))
            precision, ahead = min(tries)
            answers.append((ahead, precision))
    hosts = _gathered(socket.gethostname())
    return [(host, *answer) for host, answer in zip(hosts, answers, strict=False)]


def _bandwidth(device: torch.device, group: dist.ProcessGroup | None, size: int, limit: float) -> Facts:
    """An all-reduce of fp32, timed. Bus bandwidth = bytes x 2 (n - 1) / n / seconds: what each node sends in a ring."""

    def seconds(count: int) -> float:
        values = torch.ones(count // 4, device=device)
        dist.barrier(group) if device.type == "cpu" else torch.cuda.synchronize(device)
        start = time.perf_counter()
        dist.all_reduce(values, group=group)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    seconds(_WARM_UP)
    small = seconds(_WARM_UP)
    # All must come to the same: on a slow network the small one has to do.
    taken: list[Any] = [_WARM_UP if small * size / _WARM_UP * (_ROUNDS + 1) > limit / 4 else size]
    dist.broadcast_object_list(taken)
    took = statistics.median(seconds(taken[0]) for _ in range(_ROUNDS))
    n = dist.get_world_size()
    return {"bytes": taken[0], "seconds": round(took, 6), "gb_s": round(taken[0] * 2 * (n - 1) / n / took / 1e9, 4)}


def _nccl(limit: float) -> Facts | None:
    """The same from GPU to GPU, one a node; None where some node has none."""
    if not all(_gathered(torch.cuda.is_available() and dist.is_nccl_available())):
        return None
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    try:
        group = dist.new_group(backend="nccl", timeout=timedelta(seconds=limit))
        return _bandwidth(device, group, _SIZE_GPU, limit)
    except Exception as error:
        return {"error": " ".join(str(error).split())[-300:]}
