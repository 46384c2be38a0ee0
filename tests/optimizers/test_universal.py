"""DeepSpeed's universal checkpoint: which state of our optimizers it converts to another number of processes.

It knows the states exp_avg and exp_avg_sq alone, at stage 3 gives all param groups the options of the first, and cannot
be read by a rank that owns nothing of a group, so this small model runs on at most 2 processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.optimizers import sharded
from tests.optimizers.test_sharded import check
from tests.ranks import Ranks
from tests.tiers import covering

STAGES = [1, 2, 3]
HALF = sharded.STEPS // 2


def _first_half(rule: str, stage: int, folder: str) -> None:
    ds_engine, _ = sharded.engine(rule, {"stage": stage})
    for step in range(HALF):
        sharded.feed(ds_engine, step)
    ds_engine.save_checkpoint(folder, tag="half")
    ds_engine.destroy()


def _second_half(rule: str, stage: int, folder: str, restore_groups: bool) -> dict:
    ds_engine, optimizer = sharded.engine(rule, {"stage": stage}, checkpoint={"load_universal": True})
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    ds_engine.load_checkpoint(folder, tag="half_universal")
    if restore_groups:
        for group, own in zip(optimizer.param_groups, options, strict=True):
            group.update(own)
    try:
        for step in range(HALF, sharded.STEPS):
            sharded.feed(ds_engine, step)
        return sharded.result(ds_engine, optimizer)
    except RuntimeError as error:
        return {"refused": str(error)}
    finally:
        ds_engine.destroy()


def _convert(folder: str) -> str:
    """What ``python -m deepspeed.checkpoint.ds_to_universal`` does; returns its error, or nothing."""
    from deepspeed.checkpoint import ds_to_universal

    arguments = ["ds_to_universal", "--inject_missing_state", "--num_extract_workers", "1", "--num_merge_workers", "1"]
    arguments += ["--input_folder", f"{folder}/half", "--output_folder", f"{folder}/half_universal"]
    try:
        with mock.patch("sys.argv", arguments):
            ds_to_universal.main(ds_to_universal.parse_arguments())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _convert_on_rank_0(folder: str) -> str:
    return _convert(folder) if torch.distributed.get_rank() == 0 else ""


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The first half of a run at each stage, in one process, converted."""
    root = tmp_path_factory.mktemp("universal")
    one = Ranks(1)
    for stage in STAGES:
        one.run(_first_half, "lamb", stage, str(root / str(stage)))
        assert one.run(_convert, str(root / str(stage))) == [""]
    yield str(root)
    one.close()


@covering(lambda ranks: ranks == 2)
@pytest.mark.parametrize("ranks", [1, 2], indirect=True)
@pytest.mark.parametrize("stage", STAGES)
def test_universal_checkpoint_at_another_world_size(ranks: Ranks, halves: str, stage: int) -> None:
    check(ranks.run(_second_half, "lamb", stage, f"{halves}/{stage}", stage == 3), "lamb")


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_groups_overwritten_by_deepspeed_are_refused(ranks: Ranks, halves: str) -> None:
    for result in ranks.run(_second_half, "lamb", 3, f"{halves}/3", False):
        assert "has given all groups the options of the first one" in result["refused"]


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_momentum_is_not_in_the_universal_checkpoint(ranks: Ranks, tmp_path: Path) -> None:
    """If this fails, DeepSpeed converts other states now: update docs/optimizers.md."""
    ranks.run(_first_half, "lars", 3, str(tmp_path))
    assert ranks.run(_convert_on_rank_0, str(tmp_path))[0] == "KeyError: 'exp_avg'"
