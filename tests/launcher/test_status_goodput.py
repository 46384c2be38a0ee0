"""`bellwether status` says what a run's time went to. `test_interruptions` asks it of a run that was killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bellwether.cli import main
from tests.trainer.test_goodput import EXPECTED, chain


def test_status_prints_the_parts_and_the_suggested_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain(tmp_path)
    assert main(["status", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "59.1% waiting in the queue, 12.8% training" in out
    assert "checkpoint every 33 steps" in out
    assert main(["status", "--json", str(tmp_path)]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["seconds"] == pytest.approx(EXPECTED)
    assert sum(numbers["shares"].values()) == pytest.approx(1)
    assert numbers["suggested_checkpoint_interval"]["steps"] == 33
    assert (numbers["failures"], numbers["launches"], numbers["step"]) == (1, 3, 50)
