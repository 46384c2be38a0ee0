"""Slots: how the trials of a sweep share the cores and GPUs of a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bellwether.experiments.sweep import spec
from bellwether.experiments.sweep.slots import slots
from bellwether.trainer.config import ConfigError
from tests.experiments.sweep.digits_sweep import write


@pytest.mark.parametrize(
    "sweep, cores, gpus, jobs, expected",
    [
        ({}, 4, 0, None, [([0], []), ([1], []), ([2], []), ([3], [])]),
        ({"processes": 2, "cores": 1}, 4, 0, None, [([0, 1], []), ([2, 3], [])]),
        ({"cores": 3}, 4, 0, None, [([0, 1, 2], [])]),
        ({"cores": 8}, 4, 0, None, [([0, 1, 2, 3], [])]),
        ({}, 2, 0, 3, [([], []), ([], []), ([], [])]),
        ({}, 4, 0, 1, [([0], [])]),
        ({"processes": 2}, 8, 4, None, [([0, 1, 2, 3], [0, 1]), ([4, 5, 6, 7], [2, 3])]),
        ({}, 8, 2, 5, [([0, 1, 2, 3], [0]), ([4, 5, 6, 7], [1])]),
    ],
)
def test_slots_divide_the_machine(
    tmp_path: Path, sweep: dict[str, Any], cores: int, gpus: int, jobs: int | None, expected: Any
) -> None:
    found = slots(spec.read(write(tmp_path, **sweep)), range(cores), gpus, jobs)
    assert [(slot.cores, slot.gpus) for slot in found] == expected


def test_trial_that_needs_more_gpus_than_the_machine_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"processes: 8: .* this machine has 4"):
        slots(spec.read(write(tmp_path, processes=8)), range(16), 4, None)
