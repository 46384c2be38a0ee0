"""Checkpoints that a thread writes while training goes on: the same bits, nothing damaged after a kill, errors on all ranks at once."""

from __future__ import annotations

import importlib
import logging
import os
import resource
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import safetensors.torch
import torch

from bellwether.trainer import saving
from bellwether.trainer.checkpoint import Manifest
from bellwether.trainer.checkpoint.format import checksum, damage
from bellwether.trainer.checkpoint.snapshot import HostBuffer, Snapshot
from bellwether.trainer.config import ConfigError
from bellwether.trainer.metrics import read
from tests.ranks import Ranks
from tests.tiers import covering
from tests.trainer.runs import images, run_config

EVERY = {"every": "2 steps", "keep": 2}


def config(workspace: Path, name: str, **changes: Any) -> dict[str, Any]:
    return images(workspace, name, **{"duration": "6 steps", "checkpoint": EVERY, **changes})


def saved(raw: dict[str, Any]) -> dict[str, dict[str, bytes]]:
    """The content of each file of each published checkpoint."""
    root = Path(raw["runs"], raw["name"], "checkpoints")
    return {path.name: {file.name: file.read_bytes() for file in path.iterdir()} for path in sorted(root.iterdir())}


def slowly(raw: dict[str, Any], seconds: float) -> None:
    """Train, with a file system on which each rank's file takes so long."""
    write = Snapshot.write

    def slow(self: Snapshot, file: Path) -> dict[str, Any]:
        time.sleep(seconds)
        return write(self, file)

    with mock.patch.object(Snapshot, "write", slow):
        run_config(raw)


def test_file_is_the_one_that_safetensors_writes(tmp_path: Path) -> None:
    tensors = {
        "weight|b.weight|0": torch.randn(1_500_000), "weight|a|7": torch.randn(3).to(torch.bfloat16),
        "buffer|é|0": torch.arange(5), "buffer|flag|0": torch.tensor([True]), "frozen|c|0": torch.randn(4, dtype=torch.float64),
        "exp_avg|none|0": torch.empty(0),
    }  # fmt: skip
    buffer = HostBuffer(pinned=False)
    buffer.reserve(1 << 24).fill_(255)  # of an earlier checkpoint
    snapshot = Snapshot.reserve({key: (value.dtype, value.numel()) for key, value in tensors.items()}, buffer)
    for key, value in tensors.items():
        snapshot.fill(key, value)
        value.zero_()
    written = snapshot.write(tmp_path / "file")
    loaded = safetensors.torch.load_file(tmp_path / "file")
    assert safetensors.torch.save(loaded) == (tmp_path / "file").read_bytes()
    assert loaded.keys() == tensors.keys()
    assert loaded["buffer|é|0"].tolist() == [0, 1, 2, 3, 4]
    assert written == {"bytes": (tmp_path / "file").stat().st_size, "xxh3_128": checksum(tmp_path / "file")}


@covering(lambda ranks, stage: (ranks, stage) == (2, 2))
@pytest.mark.parametrize("ranks", [1, 2], indirect=True)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_written_while_training_goes_on_it_has_the_same_bits(ranks: Ranks, workspace: Path, stage: int) -> None:
    plain, beside = (
        config(workspace, f"{name}-{stage}-{ranks.world_size}", engine={"stage": stage}) for name in ("plain", "beside")
    )
    plain["checkpoint"] = {**EVERY, "async_save": False}
    ranks.run(run_config, plain)
    # Stopped after step 4 and resumed; both halves train on while a checkpoint is written.
    ranks.run(slowly, {**beside, "stop_after": "4 steps"}, 0.5)
    ranks.run(slowly, beside, 0.5)
    assert list(saved(plain)) == ["step-00000004", "step-00000006"]
    assert saved(beside) == saved(plain)
    lines = read(Path(beside["runs"], beside["name"])).checkpoint
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all(line["seconds"] > 0.5 for line in lines)
    standing = [line["blocked_seconds"] for line in read(Path(plain["runs"], plain["name"])).checkpoint]
    assert len(standing) == 3


def _refuse_to_wait(raw: dict[str, Any], until: int) -> list[int]:
    """Train; returns the steps that began while the first checkpoint was not written, which it is only after a step."""
    from bellwether.trainer.engine import Engine

    begun, step, write = [], Engine.train_step, Snapshot.write

    def counted(self: Any, *arguments: Any) -> Any:
        begun.append(len(begun) + 1)
        return step(self, *arguments)

    def held(self: Snapshot, file: Path) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while len(begun) < until and time.monotonic() < deadline:
            time.sleep(0.01)
        during.append(len(begun))
        return write(self, file)

    during: list[int] = []
    with mock.patch.object(Engine, "train_step", counted), mock.patch.object(Snapshot, "write", held):
        run_config(raw)
    return during


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_training_goes_on_until_the_next_checkpoint_is_due(ranks: Ranks, workspace: Path) -> None:
    raw = config(workspace, "goes-on")
    during = ranks.run(_refuse_to_wait, raw, 4)
    assert [rank[0] for rank in during] == [4, 4]  # steps 3 and 4 were trained meanwhile, step 5 waits
    lines = read(Path(raw["runs"], raw["name"])).checkpoint
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all(line["waited_seconds"] <= line["blocked_seconds"] for line in lines)


def _stages() -> dict[str, tuple[str, str, int]]:
    """Where a rank is killed: module and function, and the call of it, counted from the second checkpoint on."""
    return {
        "copying": ("snapshot", "Snapshot.fill", 5),
        "writing": ("snapshot", "_write_block", 2),  # after a part of the file
        "before publishing": ("save", "_publish", 1),
        "without manifest on the disk": ("save", "_flush", 1),
        "before the rename": ("save", "_flush", 2),
        "after the rename": ("save", "_flush", 3),
        "before retention": ("save", "_prune", 1),
        "old ones renamed": ("save", "_delete", 1),
    }


STAGES = list(_stages())


def _kill(raw: dict[str, Any], stage: str, rank: int) -> None:
    """Train, with a rank that is killed in a stage of its second checkpoint."""
    module_name, name, nth = _stages()[stage]
    module: Any = importlib.import_module(f"bellwether.trainer.checkpoint.{module_name}")
    owner, _, attribute = name.rpartition(".")
    target = getattr(module, owner) if owner else module
    original: Callable[..., Any] = getattr(target, attribute)
    calls: list[int] = []

    def killing(*arguments: Any, **named: Any) -> Any:
        if second and torch.distributed.get_rank() == rank:
            calls.append(1)
            if len(calls) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    second: list[int] = []
    start = saving.start

    def counted(run: Any, *arguments: Any) -> None:
        if run.position.step == 4:
            saving.finish(run)
            second.append(1)
        start(run, *arguments)

    setattr(target, attribute, killing)
    saving.start = counted
    run_config(raw)


@covering(lambda stage: stage == "writing")
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_stage_it_resumes_to_the_same_bits(
    ranks: Ranks, workspace: Path, undisturbed: dict[str, Any], stage: str
) -> None:
    raw = config(workspace, "killed-" + stage.replace(" ", "-"), checkpoint={"every": "2 steps", "keep": 1})
    killed = Ranks(2)
    killed.run_until_killed(_kill, raw, stage, 1 if stage == "writing" else 0)
    root = Path(raw["runs"], raw["name"], "checkpoints")
    published = [path for path in sorted(root.iterdir()) if path.suffix == ""]
    after_publishing = STAGES.index(stage) >= STAGES.index("after the rename")
    assert published[-1].name == ("step-00000004" if after_publishing else "step-00000002")
    for path in published:
        manifest = Manifest.read(path)
        assert damage(path, manifest, list(manifest.files)) is None
    ranks.run(run_config, raw)
    assert saved(raw) == saved(undisturbed)
    assert not [path for path in root.iterdir() if path.suffix == ".damaged"]


@pytest.fixture(scope="module")
def undisturbed(workspace: Path) -> dict[str, Any]:
    raw = config(workspace, "undisturbed", checkpoint={"every": "2 steps", "keep": 1})
    pair = Ranks(2)
    pair.run(run_config, raw)
    pair.close()
    return raw


def _full(raw: dict[str, Any]) -> tuple[str, int]:
    """Train, where rank 1 cannot write its first checkpoint; returns the error, and the steps that this rank has trained.

    Steps take a while, so that many more than one would be trained until the next checkpoint; rank 1 is the last to know.
    """
    from bellwether.trainer.engine import Engine

    trained, step, rank = [], Engine.train_step, torch.distributed.get_rank()
    tell = Future.set_exception

    def late(self: Any, error: Any) -> None:
        time.sleep(0.3 * rank)
        tell(self, error)

    def counted(self: Any, *arguments: Any) -> Any:
        trained.append(1)
        if len(trained) == 30 and rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # it writes nothing but checkpoints
        time.sleep(0.1 * (len(trained) > 30))
        return step(self, *arguments)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with mock.patch.object(Engine, "train_step", counted), mock.patch.object(Future, "set_exception", late):
            slowly(raw, 0.1)
    except OSError as error:
        return f"{error}, raised by all: {error.raised_by_all_ranks}", len(trained)  # type: ignore[attr-defined]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return "", len(trained)


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_full_disk_of_one_rank_fails_on_all_at_the_same_step(ranks: Ranks, workspace: Path) -> None:
    raw = config(workspace, "full", duration="90 steps", checkpoint={"every": "30 steps", "keep": 2})
    results = ranks.run(_full, raw)
    assert results[0] == results[1]
    message, steps = results[0]
    assert "File too large" in message
    assert message.endswith("raised by all: True"), "so that it is reported once"
    assert "rank-00001.safetensors" in message
    assert 30 < steps < 60, "it waits neither for the writing nor for the next checkpoint"
    assert not saved(raw), "nothing is published, and nothing is left on the full disk"


def _events(raw: dict[str, Any]) -> list[str]:
    """Train; returns the files and folders that this rank has brought to the disk, and what it has renamed, in order."""
    sync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        sync(descriptor)
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    def renamed(self: Path, target: Path) -> Path:
        events.append(f"{self.name} becomes {target.name}")
        return rename(self, target)

    events: list[str] = []
    with mock.patch("os.fsync", synced), mock.patch.object(Path, "rename", renamed):
        run_config(raw)
    return events


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_all_is_on_the_disk_before_a_checkpoint_is_published(ranks: Ranks, workspace: Path) -> None:
    """After a power failure, too, no checkpoint is incomplete, or newer than the lines of its steps."""
    raw = config(workspace, "order", duration="2 steps")
    first, second = ranks.run(_events, raw)
    name = "step-00000002"
    begin, end = first.index("rank-00000.safetensors"), first.index(f"{name}.partial becomes {name}")
    assert first[begin : end + 2] == [
        "rank-00000.safetensors", "metrics.jsonl", "manifest.json", f"{name}.partial", f"{name}.partial becomes {name}", "checkpoints",
    ]  # fmt: skip
    assert "rank-00001.safetensors" in second


def _fail_in_flight(raw: dict[str, Any]) -> str:
    from bellwether.trainer.loop import PhaseLoop

    def diverge(self: Any, loss: float) -> None:
        if self.run.position.step == 3:
            raise ConfigError("optimizer.lr", 1.0, "too high", "lower it")

    with mock.patch.object(PhaseLoop, "check_loss", diverge):
        try:
            slowly(raw, 0.5)
        except ConfigError as error:
            return str(error)
    return ""


@pytest.mark.full
@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_run_that_fails_still_publishes_what_it_was_writing(ranks: Ranks, workspace: Path) -> None:
    raw = config(workspace, "fails", checkpoint={"every": "2 steps"})
    assert "too high" in ranks.run(_fail_in_flight, raw)[0]
    assert list(saved(raw)) == ["step-00000002"]


def _stop(raw: dict[str, Any]) -> None:
    """Train slowly, with a signal that one rank receives in step 3."""
    from bellwether.trainer import signals

    def stepped() -> None:
        steps.append(1)

    def received() -> int:
        return signal.SIGUSR2 if torch.distributed.get_rank() == 1 and len(steps) == 2 else 0

    steps: list[int] = []
    with mock.patch.object(signals, "stepped", stepped), mock.patch.object(signals, "received", received):
        slowly(raw, 0.5)


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_preempted_run_waits_for_its_checkpoint(ranks: Ranks, workspace: Path) -> None:
    raw = config(workspace, "preempted")
    ranks.run(_stop, raw)
    assert list(saved(raw)) == ["step-00000002", "step-00000003"]
    lines = read(Path(raw["runs"], raw["name"])).checkpoint
    assert [line["step"] for line in lines] == [2, 3]
    assert lines[-1]["waited_seconds"] > 0.3  # before the processes may end


def _late(raw: dict[str, Any]) -> list[str]:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    saving.log.addHandler(handler)
    try:
        with mock.patch.object(saving, "_LONG_WAIT", 0.1):
            slowly(raw, 1.0)
    finally:
        saving.log.removeHandler(handler)
    return messages


@pytest.mark.full
@pytest.mark.parametrize("ranks", [1], indirect=True)
def test_checkpoint_that_waits_for_the_one_before_is_named_and_counted(ranks: Ranks, workspace: Path) -> None:
    raw = config(workspace, "late", checkpoint={"every": "1 steps", "keep": 9}, duration="3 steps")
    messages = ranks.run(_late, raw)[0]
    assert [message.split(":")[0] for message in messages] == ["step 2", "step 3"]
    assert "(2 so far)" in messages[1]
    assert "checkpoint.every" in messages[1]
    assert list(saved(raw)) == ["step-00000001", "step-00000002", "step-00000003"]
