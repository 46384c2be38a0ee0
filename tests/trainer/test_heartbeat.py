"""The file of the heartbeat. tests/launcher/test_failures and tests/cluster test that a silent rank ends a run."""

from __future__ import annotations

import json
from pathlib import Path

import torch

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
