"""The file of the heartbeat, and a hang that ends by itself. tests/launcher (test_failures, test_hangs) and tests/cluster end runs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

from bellwether.trainer import arrival, heartbeat, stack_dump
from bellwether.trainer.arrival import Limits
from bellwether.trainer.distributed import World
from bellwether.trainer.heartbeat import Heartbeat


def test_file_exists_before_the_first_beat_and_records_how_the_run_ended(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    beat = Heartbeat(tmp_path, World(0, 1, 0, torch.device("cpu")), 0.0)
    assert json.loads(beat.file.read_text())["ended"] is None
    beat.at(3, "checkpoint")
    beat.close("diverged")
    content = json.loads(beat.file.read_text())
    assert (content["ended"], content["step"]) == ("diverged", 3)
    assert [path.name for path in beat.file.parent.iterdir()] == [beat.file.name]


def test_rank_without_beats_is_silent_only_where_the_run_does_not_move_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger who overwrites the beats of a rank all the time does not end a run that trains."""
    exits: list[int] = []
    monkeypatch.setattr(heartbeat.stack_dump, "arm", lambda seconds: None)
    monkeypatch.setattr(heartbeat.stack_dump, "disarm", lambda: None)
    monkeypatch.setattr(heartbeat, "connect", torch.distributed.HashStore)
    monkeypatch.setattr(heartbeat, "run_on_rank0", lambda world, act: act())
    monkeypatch.setattr(heartbeat.dist, "barrier", lambda: None)
    monkeypatch.setattr(heartbeat.error_file, "write", lambda error: None)
    monkeypatch.setattr(os, "_exit", exits.append)
    (tmp_path / "logs").mkdir()
    beat = Heartbeat(tmp_path, World(0, 2, 0, torch.device("cpu"), secret="of the run"), 1.2)
    for step in range(40):
        beat.at(step, arrival.UPDATE)
        time.sleep(0.1)
    assert exits == []
    deadline = time.monotonic() + 20
    while not exits:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert set(exits) == {76}
    content = json.loads(beat.file.read_text())
    beat.close("lost")
    assert content["ended"] == "lost"
    assert "rank 1 on an unknown host has been silent" in content["reason"]


def test_run_that_moves_on_is_not_ended_and_its_stacks_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stack_dump, "arm", lambda seconds: None)  # pytest uses the same timer
    monkeypatch.setattr(stack_dump, "disarm", lambda: None)
    monkeypatch.setattr(Heartbeat, "_frames", lambda self, folder: {})  # as if other ranks had yet to answer
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail(f"ended with {status}"))
    (tmp_path / "logs/stacks/20260101-000000-step-1").mkdir(parents=True)
    (tmp_path / "logs/stacks/20260101-000000-step-1/rank-00000.txt").touch()
    (tmp_path / "logs/stacks/mine").mkdir()
    beat = Heartbeat(tmp_path, World(0, 1, 0, torch.device("cpu")), 6.0, Limits(factor=1, seconds=1.5), keep=1)
    beat.at(0, arrival.START_OF_PHASE)
    for step in range(5):
        beat.at(step, arrival.UPDATE)
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("logs/stacks/*-step-4/*.txt")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    beat.at(5, arrival.UPDATE)
    while "the run has moved on after" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    beat.close("stopped")
    names = sorted(p.name for p in (tmp_path / "logs/stacks").iterdir())
    assert len(names) == 2
    assert names[0].endswith("-step-4"), names
    assert names[1] == "mine"
