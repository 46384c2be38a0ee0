"""A signal before the first step ends a rank at once, also while it waits for ranks that never come."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.launcher.processes import finish, ranks_of, start, wait_for_step
from tests.tiers import covering

HANGING = str(Path(__file__).parent / "hanging")


@covering(lambda number: number == signal.SIGTERM)
@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_rank_that_waits_at_the_rendezvous_ends_at_once(space: Path, number: signal.Signals) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start(
        space, "bellwether.trainer", "long.yaml", f"name=early{number}", RANK="0", LOCAL_RANK="0", WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    listens(process, port)
    time.sleep(2)  # it waits in C++ code
    process.send_signal(number)
    try:
        status, _, error = finish(process, 10)
    finally:
        process.kill()
    assert status == (130 if number == signal.SIGINT else 75)
    assert f"stopped by {number.name} before the first step" in error
    assert "Traceback" not in error


def listens(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + 120
    while not any(c.laddr.port == port for c in psutil.Process(process.pid).net_connections("tcp")):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.full
@pytest.mark.process
def test_launcher_ends_at_once_when_a_rank_waits_for_another_before_the_first_step(space: Path) -> None:
    process = start(
        space, "bellwether", "train", "long.yaml", "--nproc", "2", "name=waiting", PYTHONPATH=HANGING,
        TEST_HANG="1 rank bellwether.trainer.startup.plan 1",
    )  # fmt: skip
    heartbeat = space / "runs/waiting/logs/heartbeat.json"
    deadline = time.monotonic() + 120
    while not heartbeat.exists():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(2)
    children = ranks_of(process)
    process.send_signal(signal.SIGTERM)
    status, _, error = finish(process, 20)  # not the two minutes in which ranks could save
    assert status == 75, error
    assert len(children) == 2
    assert not any(child.is_running() for child in children.values())
    assert '"ended": "saved"' in heartbeat.read_text()


@pytest.mark.full
@pytest.mark.process
def test_ctrl_c_ends_a_rank_in_a_collective_that_does_not_finish(space: Path) -> None:
    process = start(
        space, "bellwether", "train", "long.yaml", "--nproc", "2", "name=endless", PYTHONPATH=HANGING,
        TEST_HANG="0 rank bellwether.trainer.engine.Engine.forward 14",
    )  # fmt: skip
    wait_for_step(process, space, "endless", 6)
    time.sleep(2)  # rank 1 waits in C++ code for rank 0
    rank = ranks_of(process)[1]
    rank.send_signal(signal.SIGINT)
    rank.wait(20)
    finish(process, 60)
