"""A disk that cannot be written ends a run with a line that names the file, instead of a traceback."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from bellwether.launcher import ranks
from bellwether.trainer import __main__ as main
from bellwether.trainer import file_errors
from bellwether.trainer.checkpoint.snapshot import HostBuffer, Snapshot
from bellwether.trainer.metrics import Metrics

REASON = "once the disk can be written, the same command resumes from the newest checkpoint"


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file can grow beyond 1 kB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_file_of_a_checkpoint_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rank-00000.safetensors"
    with pytest.raises(OSError, match="File too large") as caught:
        Snapshot.reserve({"weight|w|0": (torch.float32, 1000)}, HostBuffer(pinned=False)).write(file)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(file))
    assert file_errors.explain(caught.value) == f"{file}: File too large; {REASON}"


@pytest.mark.usefixtures("small_files")
def test_metrics_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    with pytest.raises(OSError, match="File too large") as caught:
        metrics.write("plan", phases=[[{"label": "long", "value": "x" * 2000}]])
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")


def test_path_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for make in ((tmp_path / "file").mkdir, (tmp_path / "file" / "sub").mkdir, tmp_path.read_text):
        with pytest.raises(OSError, match=str(tmp_path)) as caught:
            make()
        assert str(file_errors.explain(caught.value)).startswith(f"{caught.value.filename}: ")
    assert file_errors.explain(PermissionError(errno.EACCES, "of a socket")) is None


def test_other_errors_keep_their_traceback(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError, match="no such tensor"), file_errors.naming(tmp_path):
        raise SafetensorError("no such tensor")
    with pytest.raises(OSError, match="named") as caught, file_errors.naming(tmp_path):
        raise OSError(errno.ENOSPC, "full", "named")
    assert caught.value.filename == "named"
    for error in (ConnectionResetError(errno.ECONNRESET, "reset"), SafetensorError("x"), OSError("without a number")):
        assert file_errors.explain(error) is None


@pytest.mark.parametrize("by_all, rank, shown", [(True, "0", True), (True, "1", False), (False, "1", True)])
def test_full_disk_is_one_line_without_a_launcher(
    by_all: bool, rank: str, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    monkeypatch.delenv("BELLWETHER_WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", rank)
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/x/rank-00001.safetensors")
    if by_all:
        error.raised_by_all_ranks = True  # type: ignore[attr-defined]
    assert main._record_failure(error) == 1
    line = f"/runs/x/rank-00001.safetensors: No space left on device; {REASON}"
    assert [record.message for record in caplog.records] == [line] * shown
    assert "Traceback" not in capsys.readouterr().err


def test_full_disk_is_one_line_in_bellwethers_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setenv("BELLWETHER_WORLD_SIZE", "2")
    assert main._record_failure(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/x/rank-00001.safetensors")) == 1
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=1, error_file=str(file))
    assert ranks._message(failure) == f"/runs/x/rank-00001.safetensors: No space left on device; {REASON}"
    assert json.loads(file.read_text())["message"]["message"] == ranks._message(failure)
