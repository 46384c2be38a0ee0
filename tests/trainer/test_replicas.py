"""A rank whose copy of the weights differs is named and ends the run without a checkpoint."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bellwether.trainer import replicas, signals
from bellwether.trainer.engine import Engine
from tests.ranks import Ranks
from tests.tiers import covering
from tests.trainer.runs import run_config, text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([[1, 2], [1, 2], [1, 3], [1, 2]], "rank 2 on node2 (b) against the others"),
        ([[1, 2], [1, 2], [4, 3], [5, 2]], "b; it cannot be told"),
        ([[7, 3], [1, 2], [1, 2]], "rank 0 on node0 (a, b) against the others"),
        ([[1, 2], [1, 3]], "b; it cannot be told which rank is wrong"),
    ],
)
def test_minority_is_named(values: list[list[int]], words: str) -> None:
    if words.startswith("b;") and len(values) == 4:
        values = [[1, 2], [1, 2], [1, 3], [1, 3]]
    assert words in replicas.describe(5, ["a", "b"], values, [f"node{rank}" for rank in range(len(values))])


def test_rank_with_a_value_that_is_not_finite_is_named_among_two() -> None:
    text = replicas.describe(5, ["a", "not finite"], [[1, 0], [2, 1]], ["node0", "node1"])
    assert "rank 1 on node1 (not finite)" in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_checksum_changes_with_any_bit(dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 5).to(dtype)
    before = int(replicas.checksum(tensor.t()))
    assert before == int(replicas.checksum(tensor))
    bits = tensor.view(torch.int16)
    bits[1, 2] ^= 1
    assert int(replicas.checksum(tensor)) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("offset", [0, 1])
def test_checksum_of_eight_bytes_at_a_time_changes_with_any_bit_and_not_with_the_layout(
    dtype: torch.dtype, offset: int
) -> None:
    tensor = torch.randint(0, 256, (513,), dtype=torch.uint8).repeat_interleave(dtype.itemsize)[: 513 * dtype.itemsize]
    tensor = tensor.view(dtype)[offset : offset + 512].view(16, 32)
    before = int(replicas.checksum(tensor))
    assert before == int(replicas.checksum(tensor.t().contiguous().t()))
    assert before == int(replicas.checksum(tensor.clone()))
    for bit in range(0, 8 * 512 * dtype.itemsize, 7):
        changed = tensor.clone()
        changed.view(-1).view(torch.uint8)[bit // 8] ^= 1 << bit % 8
        assert int(replicas.checksum(changed)) != before


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_any_value_that_is_not_finite_is_found(value: float) -> None:
    parts = [torch.ones(5), torch.full((3,), 3e38), torch.full((4,), 6e4, dtype=torch.float16)]
    assert not replicas.has_not_finite([])
    assert not replicas.has_not_finite(parts)  # although the sum overflows
    parts[2][3] = value
    assert replicas.has_not_finite(parts)
    assert replicas.has_not_finite([torch.tensor([math.inf, -math.inf])])


def corrupt(raw: dict[str, Any], rank: int, step: int, value: float | None) -> str:
    """Train, with one weight of a rank changed after a step, and return how the run ended."""
    original, steps = Engine.train_step, []

    def train_step(self: Engine, *arguments: Any) -> Any:
        result = original(self, *arguments)
        steps.append(1)
        if len(steps) == step and dist.get_rank() == rank:
            weight = replicas.replicated(self.task)[-1][1].reshape(-1)
            if value is None:
                weight.view(torch.int32)[0] ^= 1
            else:
                weight[0] = value
        return result

    Engine.train_step = train_step  # type: ignore[method-assign]
    try:
        run_config(raw)
    except (signals.LostRank, RuntimeError) as error:
        return str(error)
    finally:
        Engine.train_step = original  # type: ignore[method-assign]
    return "finished"


@covering(lambda ranks, stage: ranks == 4 and stage == 2)
@pytest.mark.parametrize("ranks", [2, 4], indirect=True)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_rank_whose_weights_differ_by_a_bit_is_named_and_no_checkpoint_is_saved(
    ranks: Ranks, workspace: Path, stage: int
) -> None:
    # ZeRO overwrites the copies at the next step: the change falls on one whose end saves.
    raw = text(
        workspace, f"corrupt-{stage}-{ranks.world_size}", engine={"stage": stage}, checkpoint={"every": "2 steps"}, duration="8 steps"
    )  # fmt: skip
    (ended,) = set(ranks.run(corrupt, raw, 1, 4, None))
    who = r"rank 1 on \S+ \(" if ranks.world_size == 4 else "it cannot be told which rank is wrong"
    assert re.search(f"after step 4 the ranks' weights differ.*{who}", ended), ended
    assert [p.name for p in (Path(raw["runs"]) / raw["name"] / "checkpoints").iterdir()] == ["step-00000002"]


@pytest.mark.full
@pytest.mark.parametrize("ranks", [4], indirect=True)
@pytest.mark.parametrize(
    ("every", "value", "wanted"),
    [
        ("1 steps", 0.5, r"after step ([4-9]|1[01]) the ranks' weights differ"),
        (None, None, "finished"),
        (
            None,
            math.nan,
            r"the loss is not a number at step 6, and was not on rank 1 on \S+ before it was on the others",
        ),
    ],
)
def test_check_between_checkpoints_is_rotated_and_can_be_turned_off(
    ranks: Ranks, workspace: Path, every: str | None, value: float | None, wanted: str
) -> None:
    name = f"rotated-{every}-{value}".replace(" ", "-")
    raw = text(
        workspace, name, engine={"stage": 0, "replica_check": every}, duration="12 steps", log={"every": "1 steps" if every else "6 steps"}
    )  # fmt: skip
    (found,) = set(ranks.run(corrupt, raw, 1, 4, value))
    assert re.match(wanted, found), found
