"""The heartbeat's file; that silence ends a run is shown on real ranks, in tests/launcher/test_local and tests/cluster."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from bellwether.trainer.distributed import World
from bellwether.trainer.heartbeat import Heartbeat


def test_the_file_is_there_before_the_first_beat_and_says_the_end(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    beat = Heartbeat(tmp_path, World(0, 1, 0, torch.device("cpu")), 0.0)
    assert json.loads(beat.file.read_text())["ended"] is None
    beat.at(3, "checkpoint")
    beat.close("diverged")
    said = json.loads(beat.file.read_text())
    assert (said["ended"], said["step"]) == ("diverged", 3)
    assert [path.name for path in beat.file.parent.iterdir()] == [beat.file.name]
