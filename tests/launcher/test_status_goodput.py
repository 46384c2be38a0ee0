"""`bellwether status` says what a run's time went to."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from bellwether.cli import main
from bellwether.trainer.goodput import PARTS
from tests.launcher.processes import finish, start, wait_for_step
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


@pytest.mark.process
def test_killed_and_resumed_run_accounts_for_its_time(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = start(space, "bellwether.trainer", "long.yaml", "name=accounted", "checkpoint.every=1000 steps")
    wait_for_step(process, space, "accounted", 5)
    psutil.Process(process.pid).kill()
    finish(process)
    status, _, error = finish(start(space, "bellwether.trainer", "long.yaml", "name=accounted", "stop_after=8 steps"))
    assert status == 0, error
    assert main(["status", "--json", str(space / "runs" / "accounted")]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert sum(numbers["shares"].values()) == pytest.approx(1)
    assert set(numbers["seconds"]) == set(PARTS)
    for part in ("training", "redoing lost steps", "saving", "starting", "evaluating", "unknown"):
        assert numbers["seconds"][part] > 0, numbers
    assert (numbers["failures"], numbers["launches"]) == (1, 2)
