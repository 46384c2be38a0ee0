from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from bellwether.trainer.loop import PhaseLoop


def test_waiting_for_data_names_the_key_to_change_once(caplog: pytest.LogCaptureFixture) -> None:
    phase = SimpleNamespace(first_step=10, config=SimpleNamespace(data=SimpleNamespace(workers=3)))
    loop: Any = SimpleNamespace(
        warned_of_data=False, phase=phase, run=SimpleNamespace(position=SimpleNamespace(step=0))
    )
    with caplog.at_level(logging.WARNING):
        for step, share in ((11, 0.9), (20, 0.04), (30, 0.25), (40, 0.5)):
            loop.run.position.step = step
            PhaseLoop.warn_of_slow_data(loop, share)
    assert [record.getMessage() for record in caplog.records] == [
        "step 30: 25 % of the time was spent waiting for data: raise data.workers, which is 3 for each rank; "
        "`bellwether bench data` shows what a batch takes"
    ], "neither the first step, in which workers start, nor little waiting is reported"
