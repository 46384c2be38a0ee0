"""Which streams go on with the state of a checkpoint, and what the log reports where they do not."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bellwether.trainer.checkpoint import Manifest, Position
from bellwether.trainer.checkpoint.carried import carried_slices
from bellwether.trainer.models.carried_state import CarriedState

SHAPES = {"cell": [4, 3]}


def manifest(carried: dict[str, list[int]], data: str = "text-1", first_token: int | None = 40) -> Manifest:
    of_data = ["text-0", data]
    return Manifest(
        Position(5, 20, 1), "0", 2, "AdamW", of_data, [], {}, {}, {}, carried=carried, first_token=first_token
    )


@pytest.mark.parametrize(
    ("saved", "new_phase", "message"),
    [
        (manifest(SHAPES), False, None),
        (manifest(SHAPES), True, "4 streams begin at the start of the text, from an empty state"),
        (manifest({"cell": [8, 3]}), False, "has the state of 8 streams, not of 4 like these"),
        (manifest({}), False, "has the state of 0 streams, not of 4 like these"),  # of an older version
        (manifest(SHAPES, "text-2"), False, "has the state of streams of other text"),
        (manifest(SHAPES, first_token=35), False, "after 35 tokens, where windows of this length and seed begin at 40"),
        (manifest(SHAPES, first_token=None), False, None),  # of an older version
    ],
)
def test_streams_of_other_places_begin_from_an_empty_state(
    saved: Manifest, new_phase: bool, message: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine: Any = SimpleNamespace(carried=CarriedState([1, 2], 4, {"cell": torch.zeros(2, 3)}, first_token=40))
    found = carried_slices(engine, saved, Path("step-00000005"), new_phase, "text-1")
    if message is None:
        ((name, start, part),) = found
        assert (name, start, len(part), caplog.text) == ("cell", 3, 6, "")
    else:
        assert not found
        assert message in caplog.text


def test_models_without_state_read_none() -> None:
    engine: Any = SimpleNamespace(carried=None)
    assert carried_slices(engine, manifest({}), Path("step-00000005"), False, "text-1") == []


def test_manifest_of_a_version_without_streams_is_read() -> None:
    raw = manifest(SHAPES).to_json()
    del raw["carried"], raw["first_token"]
    assert Manifest.from_json(raw).carried == {}
    assert Manifest.from_json(raw).first_token is None
