"""Up to 1,024 fake ranks meet in one store on this machine, and send a round of heartbeats. Prints a table for docs/scaling.md.

    python scripts/simulate_rendezvous.py [RANKS ...]

Real: the store, its connections and the signed beats (`bellwether.trainer.store`), read by rank 0 as `bellwether.trainer.heartbeat` does.
Simulated: the ranks, which are threads of a few processes on the machine of the store; no network, and no gloo or NCCL connections.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from bellwether.trainer import store
from bellwether.trainer.store import SignedStore

PROCESSES = 2
ROUNDS = 3
_TIMEOUT = timedelta(minutes=5)
_BEAT = {
    "n": 1,
    "host": "node-0001",
    "step": 1200,
    "doing": "forward, backward and update",
    "entered": 2400,
    "begun": 3,
    "for_s": 0.1,
}


def main() -> int:
    sizes = [int(size) for size in sys.argv[1:]] or [64, 256, 1024]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(
        "| ranks | connections a rank | connections | all have met after, s | a round of all beats, s | rank 0 reads all, ms |"
    )
    print("|---|---|---|---|---|---|")
    for size in sizes:
        for each in (3, 2):
            print(_row(size, each), flush=True)
    return 0


def _row(size: int, each: int) -> str:
    """One run of the simulation as a row of the table."""
    server = store.serve("127.0.0.1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(server.port))
    context = multiprocessing.get_context("spawn")
    processes = min(PROCESSES, size)
    starting = context.Barrier(processes + 1)  # so that Python's start does not count
    children: list[Any] = [
        context.Process(target=_ranks, args=(range(first, size, processes), size, each, starting)) for first in range(processes)
    ]  # fmt: skip
    for child in children:
        child.start()
    starting.wait()
    started = time.monotonic()
    server.wait(["met"], _TIMEOUT)
    met = time.monotonic() - started
    own = SignedStore(store.connect(), "heartbeat/", "secret")
    rounds, reads = [], []
    for number in range(ROUNDS):
        started = time.monotonic()
        server.set(f"round/{number}", "")
        server.wait([f"beaten/{number}"], _TIMEOUT)
        rounds.append(time.monotonic() - started)
        started = time.monotonic()
        assert None not in own.get([f"beat/{rank}" for rank in range(size)])
        reads.append(time.monotonic() - started)
    for child in children:
        child.join()
    return (
        f"| {size:,} | {each} | {size * each:,} | {met:.2f} | {statistics.median(rounds):.2f} | "
        f"{statistics.median(reads) * 1e3:.0f} |"
    )


def _ranks(ranks: range, size: int, each: int, starting: Any) -> None:
    """Some of the fake ranks, each in a thread."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    threads = [threading.Thread(target=_rank, args=(rank, size, each)) for rank in ranks]
    starting.wait()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _rank(rank: int, size: int, each: int) -> None:
    connections = [store.connect() for _ in range(each)]
    _arrive(connections[0], "met", size)
    beats = SignedStore(connections[1], "heartbeat/", "secret")
    for number in range(ROUNDS):
        connections[0].wait([f"round/{number}"], _TIMEOUT)
        beats.set(f"beat/{rank}", {**_BEAT, "n": number + 1})
        beats.get(["order"])
        _arrive(connections[0], f"beaten/{number}", size)


def _arrive(connection: dist.Store, name: str, size: int) -> None:
    """Wait for all ranks, as torch's rendezvous does: the last to count itself sets a key."""
    if connection.add(f"count/{name}", 1) == size:
        connection.set(name, "")
    connection.wait([name], _TIMEOUT)


if __name__ == "__main__":
    sys.exit(main())
