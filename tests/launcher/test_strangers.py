"""What another user of the machine can send to the listening ports of a run does not end it."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from tests.launcher.processes import finish, listening_sockets, ranks_of, start, steps, wait_for_step

pytestmark = [pytest.mark.full, pytest.mark.process]

# torch's protocol: a magic number first, then the number of a command, and the lengths of what follows.
HELLO = b"\x0d" + struct.pack("<I", 0x3C85F7CE)
PAYLOADS = {
    "nothing": b"", "one byte": b"\0", "garbage": random.Random(1).randbytes(4000), "zeros": bytes(70_000), "ones": b"\xff" * 70_000,
    "web browser": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "huge length": b"\0" + struct.pack("<Q", 2**62) + b"x" * 100,
    "set a huge key": HELLO + b"\0" + struct.pack("<Q", 2**40), "wait for a key": HELLO + b"\x02" + struct.pack("<Q", 3) + b"abc",
    "huge number of keys": HELLO + b"\x0b" + struct.pack("<Q", 2**60), "huge wait": HELLO + b"\x05" + struct.pack("<Q", 2**60),
    "huge append": HELLO + b"\x09" + struct.pack("<Q", 2**50),
}  # fmt: skip


@dataclass
class Attacked:
    """A run of two ranks with data workers."""

    process: subprocess.Popen[str]
    space: Path

    def goes_on(self, count: int = 5) -> None:
        last = max(steps(self.space, "attacked"))
        wait_for_step(self.process, self.space, "attacked", last + count)

    @property
    def store(self) -> tuple[str, int]:
        return "127.0.0.1", int(next(iter(ranks_of(self.process).values())).environ()["MASTER_PORT"])


@pytest.fixture
def attacked(space: Path) -> Iterator[Attacked]:
    arguments = ("long.yaml", "--nproc", "2", "name=attacked", "engine.heartbeat=6", "data.workers=1")
    process = start(space, "bellwether", "train", *arguments)
    try:
        wait_for_step(process, space, "attacked", max(steps(space, "attacked"), default=0) + 3)
        yield Attacked(process, space)
        process.terminate()
        assert finish(process)[0] == 75
    finally:
        process.kill()


def test_nothing_that_is_sent_to_a_port_ends_the_run(attacked: Attacked) -> None:
    addresses = listening_sockets(attacked.process.pid)["tcp"]
    assert attacked.store in addresses
    with contextlib.ExitStack() as open_ones:
        for payload in PAYLOADS.values():
            for address in addresses:
                for stays in (True, False):  # one that says no more, and one that hangs up
                    connection = socket.create_connection(address, 5)
                    with contextlib.suppress(OSError):  # it has hung up first
                        connection.sendall(payload)
                    if stays:
                        open_ones.enter_context(connection)
                    else:
                        connection.close()
            attacked.goes_on()
        for _ in range(500):
            open_ones.enter_context(socket.create_connection(attacked.store, 5))
        attacked.goes_on()


def test_replayed_and_deleted_beats_do_not_end_a_run_that_trains(attacked: Attacked) -> None:
    stranger = TCPStore(*attacked.store, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
    old = {key: stranger.get(key) for key in stranger.list_keys() if "heartbeat/" in key}
    assert len(old) == 2
    for deletes in (False, True):
        deadline = time.monotonic() + 15  # more than twice the time after which a rank is silent
        while time.monotonic() < deadline:
            for key, value in old.items():
                if deletes:
                    stranger.delete_key(key)
                else:
                    stranger.set(key, value)
            time.sleep(0.02)
        attacked.goes_on()
