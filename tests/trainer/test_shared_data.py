"""Of the ranks on a machine, one locates and prepares the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bellwether.trainer import config as c
from bellwether.trainer import data, shared_data
from bellwether.trainer.distributed import World
from tests.ranks import Ranks
from tests.trainer.runs import images, text


def load_and_count(raw: dict[str, Any], local_ranks: list[int]) -> list[Any]:
    """Load the data of a config; returns how often this rank has located them, whether it knows the summary, and a batch."""
    from bellwether.trainer.data import image_samples, text_sources

    rank = torch.distributed.get_rank()
    world = World(rank, torch.distributed.get_world_size(), local_ranks[rank], torch.device("cpu"))
    located: list[str] = []
    originals = {module: module.locate for module in (text_sources, image_samples)}
    for module, original in originals.items():

        def locate(*arguments: Any, original: Any = original) -> Any:
            located.append("")
            return original(*arguments)

        module.locate = locate  # type: ignore[attr-defined]
    try:
        (found,) = shared_data.load_once_a_machine([c.validate(raw)], world)
    finally:
        for module, original in originals.items():
            module.locate = original  # type: ignore[attr-defined]
    batch = found.train.batch([0, 1], [1, 2])
    return [len(located), found.summary is not None, found.fingerprint, [tensor.tolist() for tensor in batch.values()]]


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("make", [text, images])
def test_one_process_a_machine_locates_the_data(ranks: Ranks, workspace: Path, make: Any) -> None:
    raw = make(workspace, "shared")
    led, told = ranks.run(load_and_count, raw, [0, 1])
    assert led[:2] == [1, True]
    assert told[:2] == [0, False]
    assert led[2:] == told[2:]
    both = ranks.run(load_and_count, raw, [1, 1])
    assert [each[0] for each in both] == [1, 1], "without a local rank 0 each rank looks for itself"
    nowhere = {**raw, "data": {**raw["data"], "source": str(workspace / "nowhere.txt"), "retry": 0}}
    with pytest.raises(AssertionError, match="no such file, folder or glob"):
        ranks.run(load_and_count, nowhere, [0, 1])


def test_facts_that_are_sent_are_json(workspace: Path) -> None:
    import json

    for make in (text, images):
        facts = data.prepare(c.validate(make(workspace, "x")).data)
        assert json.loads(json.dumps(facts)) == facts
