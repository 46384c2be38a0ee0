"""`batch.micro: auto`: estimated, tried, kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bellwether.trainer import config as c
from bellwether.trainer import micro_batch
from bellwether.trainer.memory import largest
from bellwether.trainer.memory.peak import Bytes
from bellwether.trainer.models import vocabulary
from tests.experiments.planner.truth import data_of
from tests.ranks import Ranks
from tests.trainer.runs import images, run_config, text

CPU = torch.device("cpu")


def config(**changes: Any) -> c.Config:
    return c.validate(text(Path("x"), "x", batch={"global": 64, "micro": "auto"}, **changes))


def test_auto_is_a_value_of_its_own() -> None:
    found = config()
    assert found.batch.is_auto
    assert found.batch.most == 64
    assert c.dump(found)["batch"] == {"global": 64, "micro": "auto"}
    assert c.validate(c.dump(found)) == found
    with pytest.raises(c.ConfigErrors, match=r"batch.micro: 'much': not a whole number"):
        c.validate(text(Path("x"), "x", batch={"micro": "much"}))


def test_largest_micro_batch_fits_and_one_more_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = config()
    data = data_of(auto)
    _, whole = largest.largest_for(auto, data, 1, 1e12)
    memory = whole.total - whole.activations / 2
    most, peak = largest.largest_for(auto, data, 1, memory)
    assert 1 < most < 64
    assert peak.total <= memory


@pytest.mark.full
def test_chunks_of_logits_make_room_for_a_larger_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = config()
    data = data_of(auto)
    most = largest.largest_for(auto, data, 1, 40e6)[0]
    monkeypatch.setattr(vocabulary, "KEPT", 32 * 2 * 256)  # 32 samples of 2 masked tokens
    monkeypatch.setattr(vocabulary, "CHUNK", 8 * 2 * 256)
    assert largest.largest_for(auto, data, 1, 40e6)[0] >= most
    assert largest.largest_for(auto, data, 1, 1e6)[0] == 0


def _tried(most: int, fits: dict[int, int]) -> int:
    """What is left of a micro-batch where each rank can hold so many samples."""
    from bellwether.trainer.distributed import World

    def passes(config: Any, data: Any, device: Any, micro: int, other_bytes: float) -> None:
        if micro > fits[dist.get_rank()]:
            raise torch.OutOfMemoryError("no memory left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(micro_batch, "_run_passes", passes)
        world = World(dist.get_rank(), dist.get_world_size(), 0, CPU)
        auto = config()
        return micro_batch._tried(auto, data_of(auto), world, most, 0.0)


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_micro_batch_is_halved_until_it_fits_on_every_rank(ranks: Ranks) -> None:
    assert ranks.run(_tried, 32, {0: 32, 1: 9}) == [8, 8]
    assert ranks.run(_tried, 30, {0: 32, 1: 32}) == [30, 30]  # of which 16 divides the batch
    assert ranks.run(_tried, 32, {0: 0, 1: 32}) == [0, 0]


def test_trial_runs_both_passes_beside_the_other_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **keys: asked.append(size) or empty(*size, **keys))
    auto = config(engine={"precision": "bf16"})
    assert micro_batch._fits(auto, data_of(auto), CPU, 2, 12345.0)
    assert (12345,) in asked


def _run(raw: dict[str, Any], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(micro_batch, "largest_for", lambda *_, **__: (most, Bytes()))
        run_config(raw)


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_choice_is_kept_for_a_resumed_run(ranks: Ranks, workspace: Path) -> None:
    def plan(raw: dict[str, Any]) -> str:
        lines = (Path(raw["runs"]) / raw["name"] / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines if '"plan"' in line][-1]["phases"][0]
        return str(next(row["value"] for row in rows if row["label"] == "global batch"))

    raw = text(workspace, "auto", duration="2 steps", stop_after="1 steps", batch={"global": 16, "micro": "auto"})
    ranks.run(_run, raw, 5)
    assert plan(raw) == "16 = 4 micro x 2 accumulation x 2 processes"
    ranks.run(_run, {**raw, "stop_after": None}, 8)
    assert plan(raw) == "16 = 4 micro x 2 accumulation x 2 processes"
    with pytest.raises(AssertionError, match=r"batch.micro: 'auto': not one sample fits into"):
        ranks.run(_run, {**raw, "name": "too-large"}, 0)
    mixed = images(workspace, "mixed", data={"mixup": 0.2}, batch={"global": 16, "micro": "auto"})
    with pytest.raises(AssertionError, match=r"batch.micro: 'auto': not 2 samples fit, which are mixed, into"):
        ranks.run(_run, mixed, 1)


def _resolve(raws: list[dict[str, Any]], directory: Path) -> list[list[int]]:
    """The micro-batches of the phases in one launch after another, of which each would choose another."""
    from bellwether.trainer.distributed import World

    world, found = World(dist.get_rank(), dist.get_world_size(), 0, CPU), []
    for most, raw in enumerate(raws, 3):
        phases = c.phases(c.validate(raw))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(micro_batch, "_choose", lambda *_, most=most: most)
            each = micro_batch.resolved(phases, [data_of(phase) for phase in phases], world, directory, 1)
        found.append([phase.batch.micro for phase in each])
    return found


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_kept_choice_holds_for_what_it_was_made_for(ranks: Ranks, tmp_path: Path) -> None:
    raw = text(
        tmp_path, "x", duration="2 steps", batch={"global": 64, "micro": 8}, phases=[{}, {"batch": {"micro": "auto"}}]
    )
    lower = {**raw, "batch": {"global": 64, "micro": 2}}  # which may change in a run
    checkpointing = {**lower, "engine": {"stage": 2, "activation_checkpointing": True}}
    launches = [raw, raw, lower, checkpointing, checkpointing]
    assert ranks.run(_resolve, launches, tmp_path)[0] == [[8, 3], [8, 3], [2, 3], [2, 6], [2, 6]]
