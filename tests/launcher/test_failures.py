"""Failed and silent ranks, and a signal to one rank. `test_interruptions` kills, interrupts and preempts a run."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing.errors import ErrorHandler, ProcessFailure

from bellwether.launcher import console
from bellwether.launcher.ranks import report_failure
from bellwether.trainer import error_file
from tests.launcher.processes import finish, ranks_of, start, wait_for_step
from tests.tiers import covering

FAILING = """
import os
if os.environ.get("RANK") == "1":
    from bellwether.trainer.engine import Engine
    original = Engine.train_step
    def train_step(self, *arguments, taken=[]):
        taken.append(1)
        if len(taken) == 3:
            raise RuntimeError("the disk of rank 1 is on fire")
        return original(self, *arguments)
    Engine.train_step = train_step
"""


@pytest.mark.process
def test_failed_rank_ends_the_run_and_its_error_comes_first(space: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAILING)
    status, _, error = finish(
        start(space, "bellwether", "train", "long.yaml", "--nproc", "2", "name=failing", PYTHONPATH=str(tmp_path))
    )
    assert status == 1
    assert "rank 1 failed" in error
    report = error[error.index("bellwether: rank 1") :]
    assert "the disk of rank 1 is on fire" in report
    assert error.count("Traceback") == 1, error


FULL = """
import os, sys
if os.environ.get("RANK") == "1":
    from bellwether.trainer import error_file
    from bellwether.trainer.engine import Engine
    def train_step(self, *_):
        raise OSError(28, "No space left on device")
    def dump(data, file):
        open(os.environ["TORCHELASTIC_ERROR_FILE"], "w").close()
        if os.environ["TEST_LEAVES"] == "empty":
            os._exit(1)  # as a process that is killed here
        raise OSError(28, "No space left on device")
    Engine.train_step, error_file.json.dump = train_step, dump
"""


@pytest.mark.full
@pytest.mark.process
@pytest.mark.parametrize("leaves", ["empty", "none"])
def test_rank_that_cannot_write_its_error_file_ends_the_run(space: Path, tmp_path: Path, leaves: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(FULL)
    process = start(
        space, "bellwether", "train", "long.yaml", "--nproc", "2", f"name=full-{leaves}", PYTHONPATH=str(tmp_path),
        TEST_LEAVES=leaves,
    )  # fmt: skip
    status, _, error = finish(process)
    assert status == 1
    last = [line for line in error.splitlines() if line.startswith("bellwether: ")]
    if leaves == "empty":
        assert "a rank failed and could not write why" in last[-1]
        assert "is the disk of" in last[-1]
    else:
        output = next((space / "runs" / "full-none" / "logs").rglob("1/stderr.log")).read_text()
        assert "No space left on device" in output
    assert "JSONDecodeError" not in "\n".join(last)


def test_error_file_that_cannot_be_written_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "error.json"

    def record_exception(self: ErrorHandler, error: BaseException) -> None:
        file.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setattr(ErrorHandler, "record_exception", record_exception)
    assert error_file.write(ValueError("x")) is False
    assert not file.exists()


UNREADABLE = """
import os
if os.environ.get("RANK") == "1":
    import bellwether.trainer.data.image_samples
    from bellwether.trainer.config import ConfigError
    def batch(self, indices, keys):
        raise ConfigError("data.source", "cat.png", "cannot be decoded", "repair or remove it")
    bellwether.trainer.data.image_samples.ImageSamples.worker_batch = batch
"""


@pytest.mark.full
@pytest.mark.process
def test_config_error_of_a_single_rank_is_reported(space: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(UNREADABLE)
    status, _, error = finish(
        start(space, "bellwether", "train", "long.yaml", "--nproc", "2", "name=unreadable", PYTHONPATH=str(tmp_path))
    )
    assert status == 2
    assert error.count("rank 1: data.source: 'cat.png': cannot be decoded; repair or remove it") == 1, error
    assert "Traceback" not in error


def test_first_of_two_failures_within_a_second_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failures = {}
    for rank, status, text in (0, 1, "connection reset"), (1, 2, "ConfigError: no such file"):
        file = tmp_path / f"{rank}.json"
        file.write_text(json.dumps({"message": {"message": text, "extraInfo": {"timestamp": "1700000000"}}}))
        os.utime(file, (1.7e9, 1.7e9 - rank / 100))
        failures[rank] = ProcessFailure(rank, 1, status, str(file))
    console.setup()
    assert report_failure(failures, tmp_path) == 2
    assert capsys.readouterr().err == "bellwether: rank 1: no such file\n"


@pytest.mark.full
@pytest.mark.process
def test_signal_to_a_rank_saves_at_the_next_step_and_the_resumed_run_ends_bit_identical(space: Path) -> None:
    config = ("bellwether", "train", "quick.yaml", "--nproc", "2", "duration=60 steps", "log.every=1000 steps")
    status, _, error = finish(start(space, *config, "name=whole"))
    assert status == 0, error
    process = start(space, *config, "name=signalled", "log.every=1 steps")
    wait_for_step(process, space, "signalled", 5)
    ranks_of(process)[1].send_signal(signal.SIGUSR2)
    status, _, error = finish(process, 180)
    assert status == 75, error
    stopped = re.search(r"stopped by SIGUSR2 at step (\d+)", error)
    assert stopped, error
    assert int(stopped[1]) < 60
    assert (space / f"runs/signalled/checkpoints/step-{int(stopped[1]):08d}").is_dir()
    assert not (space / "runs/signalled/finished.json").exists()
    status, _, error = finish(start(space, *config, "name=signalled"))
    assert status == 0, error
    assert (space / "runs/signalled/finished.json").is_file()
    exports = [space / "runs" / run / "export/model.safetensors" for run in ("whole", "signalled")]
    assert exports[0].read_bytes() == exports[1].read_bytes()


HANGING = """
import os, sys
if os.environ.get("RANK") == os.environ.get("TEST_SILENT", "") and "bellwether.trainer" in sys.orig_argv:
    from bellwether.trainer.engine import Engine
    original = Engine.train_step
    def train_step(self, *arguments, taken=[]):
        taken.append(1)
        if len(taken) == 3:
            os.kill(os.getpid(), 19)  # SIGSTOP: the process exists, but does not respond
        return original(self, *arguments)
    Engine.train_step = train_step
"""


@covering(lambda silent: silent == 1)
@pytest.mark.process
@pytest.mark.parametrize("silent", [0, 1])
def test_silent_rank_ends_the_run_and_is_named(space: Path, tmp_path: Path, silent: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(HANGING)
    # As under torchrun, the store is in another process; here no agent sends signals to the other rank.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [
        start(
            space, "bellwether.trainer", "long.yaml", f"name=silent{silent}", "engine.heartbeat=5", RANK=str(rank),
            LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port),
            TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0", TEST_SILENT=str(silent),
            PYTHONPATH=str(tmp_path),
        ) for rank in range(2)
    ]  # fmt: skip
    wait_for_step(ranks[0], space, f"silent{silent}", 2)
    status, _, error = finish(ranks[1 - silent], 90)
    ranks[silent].kill()
    ranks[silent].communicate()
    assert status == 76, error
    assert re.search(rf"rank {silent} on \S+ has been silent for \d+ s; last heard at step [0-2], ", error), error
    beat = json.loads((space / f"runs/silent{silent}/logs/heartbeat.json").read_text())
    assert {row["rank"] for row in beat["furthest_behind"]} == {0, 1}
    if silent == 1:
        assert beat["ended"] == "lost"
        assert max(beat["furthest_behind"], key=lambda row: row["silent_s"])["rank"] == 1
