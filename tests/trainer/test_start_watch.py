"""A rank that waits for others at the start says for which, and exits if it cannot reach them."""

from __future__ import annotations

import errno
import os
import threading
import time

import pytest

from bellwether.trainer import start_watch, store
from bellwether.trainer.process_info import ProcessInfo


def test_ranks_that_have_not_connected_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = store.serve("127.0.0.1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    monkeypatch.setattr(start_watch, "FIRST_SECONDS", 0.05)
    started = threading.Event()
    process = ProcessInfo(0, 30, 0, "127.0.0.1", server.port, "srun")
    thread = threading.Thread(target=start_watch.watch, args=(process, started))
    thread.start()
    try:
        for ranks, words in (
            ([*range(7), *range(8, 10)], "ranks 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24 and 5 more have not connected"),
            (range(10, 30), "; rank 7 has not connected"),
            ([7], "; all have connected"),
        ):  # fmt: skip
            for rank in ranks:
                server.set(start_watch.arrival(rank), "")
            deadline = time.monotonic() + 20
            while (
                f"waits for all 30 processes at 127.0.0.1:{server.port}" not in caplog.text or words not in caplog.text
            ):
                assert time.monotonic() < deadline, caplog.text
                time.sleep(0.02)
    finally:
        started.set()
        thread.join()


@pytest.mark.parametrize(
    ("errors", "exits"),
    [
        ([OSError(errno.EHOSTUNREACH, "No route to host")], True),
        ([TimeoutError("timed out")], True),
        ([ConnectionRefusedError("refused")], False),  # rank 0 starts minutes later
        ([TimeoutError("timed out"), None], False),  # now and then
        (
            [None, ConnectionRefusedError("refused")] + [ConnectionRefusedError("refused")] * 1000,
            True,
        ),  # rank 0 is gone
    ],
)
def test_rank_that_cannot_reach_the_store_exits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, errors: list[OSError | None], exits: bool
) -> None:
    started, tried = threading.Event(), [0]

    def probe(address: tuple[str, int]) -> OSError | None:
        tried[0] += 1
        return errors[(tried[0] - 1) % len(errors)]

    statuses: list[int] = []

    def leave(status: int) -> None:
        statuses.append(status)
        started.set()

    for name, value in {"FIRST_SECONDS": 0.03, "UNREACHABLE_SECONDS": 0.3, "_unreachable": probe}.items():
        monkeypatch.setattr(start_watch, name, value)
    monkeypatch.setattr(start_watch.error_file, "write", lambda error: None)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setenv("MASTER_ADDR", "rank0.example")
    monkeypatch.setenv("MASTER_PORT", "12345")
    threading.Timer(1.0, started.set).start()
    start_watch.watch(ProcessInfo(1, 2, 1, "rank0.example", 12345, "srun"), started)
    assert statuses == ([76] if exits else [])
    assert ("rank0.example:12345 cannot be reached for 0 s" in caplog.text) == exits
