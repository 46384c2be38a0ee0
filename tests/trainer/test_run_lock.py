"""The lock of a run directory, with and without flock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout

from bellwether.trainer import run_lock
from bellwether.trainer.file_locks import file_lock
from bellwether.trainer.run_lock import Busy

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS], ids=["ENOLCK", "ENOSYS"])
def no_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_flock")
def test_run_is_locked_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with run_lock.acquire(tmp_path):
        with pytest.raises(Busy, match=rf"process {os.getpid()} on .*, job 7"):
            run_lock.acquire(tmp_path)
        held = run_lock.holder(tmp_path)
        assert held is not None
        assert run_lock.job_of(held) == "7"
    assert run_lock.holder(tmp_path) is None
    run_lock.acquire(tmp_path).close()
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


@pytest.mark.usefixtures("no_flock")
def test_lease_expires_by_the_file_systems_clock_and_renewal_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = tmp_path / run_lock.LEASE
    lease.write_text("process 1 on elsewhere, job 6\nsomebody's\n")
    with pytest.raises(Busy, match="elsewhere"):
        run_lock.acquire(tmp_path)
    # Not this machine's clock, which may be wrong by hours.
    monkeypatch.setattr(time, "time", lambda: 9e9)
    with pytest.raises(Busy, match="elsewhere"):
        run_lock.acquire(tmp_path)
    old = lease.stat().st_mtime - run_lock.EXPIRE_SECONDS - 1
    os.utime(lease, (old, old))
    monkeypatch.setattr(run_lock, "RENEW_SECONDS", 0.05)
    with run_lock.acquire(tmp_path):
        os.utime(lease, (old, old))
        deadline = time.monotonic() + 10
        while lease.stat().st_mtime == old:
            assert time.monotonic() < deadline, "not renewed"
            time.sleep(0.02)
    assert not lease.exists()


@pytest.mark.usefixtures("no_flock")
def test_one_of_many_takes_an_expired_lease(tmp_path: Path) -> None:
    for _ in range(5):
        lease = tmp_path / run_lock.LEASE
        lease.write_text("process 1 on elsewhere\nold\n")
        os.utime(lease, (1, 1))
        taken: list[run_lock.RunLock] = []
        start = threading.Barrier(8)

        def take(taken: list[run_lock.RunLock] = taken, start: threading.Barrier = start) -> None:
            start.wait()
            with contextlib.suppress(Busy):
                taken.append(run_lock.acquire(tmp_path))

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1
        taken[0].close()


@pytest.mark.process
def test_lease_of_a_killed_process_of_this_machine_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import fcntl, os, sys, time\n"
        "from pathlib import Path\n"
        "def refuse(*_): raise OSError(37, 'no locks available')\n"
        "fcntl.flock = refuse\n"
        "from bellwether.trainer import run_lock\n"
        "lock = run_lock.acquire(Path(sys.argv[1]))\n"
        "print('locked', flush=True)\n"
        "time.sleep(60)\n"
    )
    # Held in one process without flock, and seen by one that has it.
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(Busy, match=f"process {process.pid} on"):
            run_lock.acquire(tmp_path)
        process.kill()
    run_lock.acquire(tmp_path).close()


def test_holder_is_named_and_asking_does_not_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_lock.holder(tmp_path / "nothing") is None
    assert run_lock.holder(tmp_path) is None
    with run_lock.acquire(tmp_path):
        assert f"process {os.getpid()} on" in (run_lock.holder(tmp_path) or "")
        with pytest.raises(Busy):
            run_lock.acquire(tmp_path)
    assert run_lock.holder(tmp_path) is None


@pytest.mark.usefixtures("no_flock")
def test_locks_of_caches_and_sweeps_work_without_flock(tmp_path: Path) -> None:
    with file_lock(tmp_path / "x.lock"):
        with pytest.raises(Timeout), file_lock(tmp_path / "x.lock", blocking=False):
            pass
    with file_lock(tmp_path / "x.lock", blocking=False):
        pass
    assert list(tmp_path.iterdir()) == []
