"""attach verifies the layout that it reads from an engine: each engine's private fields, moved, are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from bellwether.optimizers import AdamW, Lamb, attach
from bellwether.optimizers.shards import deepspeed as layouts
from bellwether.optimizers.shards.layout import ParameterInfo, ParameterSlice, ShardLayout
from bellwether.optimizers.shards.verification import verify
from tests.optimizers import sharded
from tests.ranks import Ranks
from tests.tiers import covering


def shards(*slices: tuple[int, int, int, int], numel: int = 12) -> list[ShardLayout]:
    """Of parameters a with 6 elements and b with 4, in one flat tensor."""
    parameters = (ParameterInfo("a", (2, 3)), ParameterInfo("b", (4,)))
    return [ShardLayout(torch.arange(float(numel)), parameters, tuple(ParameterSlice(*s) for s in slices), None)]


WRONG = {
    "gap": [(0, 0, 0, 5), (1, 6, 0, 4)],
    "twice": [(0, 0, 0, 6), (0, 6, 0, 6)],
    # Counts and sums of positions cancel: elements 1 and 4 twice, 2 and 3 never.
    "cancelling": [(0, 0, 0, 2), (0, 2, 1, 1), (0, 3, 4, 2), (0, 5, 4, 1), (1, 6, 0, 4)],
    "missing": [(0, 0, 0, 6)],
    "overlap": [(0, 0, 0, 6), (1, 5, 0, 4)],
    "outside-of-tensor": [(0, 0, 0, 6), (1, 9, 0, 4)],
    "outside-of-parameter": [(0, 0, 1, 6), (1, 6, 0, 4)],
    "empty": [],
}


@pytest.mark.parametrize("case", WRONG)
def test_incomplete_coverage_is_refused(case: str) -> None:
    with pytest.raises(RuntimeError, match=r"Some engine 1\.2 is not that of the model"):
        verify(shards(*WRONG[case]), engine="Some engine 1.2")


def test_right_layout_passes_in_any_order_and_with_padding() -> None:
    verify(shards((1, 7, 0, 4), (0, 4, 2, 3), (0, 2, 0, 2), (0, 0, 5, 1)), engine="e")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_are_equal_up_to_rounding(dtype: torch.dtype) -> None:
    values = torch.randn(12, generator=torch.Generator().manual_seed(0))
    values[3], values[4] = float("nan"), 1e30
    layout = [ShardLayout(values, (ParameterInfo("a", (12,)),), (ParameterSlice(0, 0, 0, 12),), None)]
    verify(layout, lambda p, s: values.to(dtype)[s.start : s.start + s.length], engine="e")
    with pytest.raises(RuntimeError, match="11 of 12 elements of a are not the model's weights"):
        verify(layout, lambda p, s: torch.cat([values[:1], values[2:], values[1:2]]).to(dtype), engine="e")


def test_parameter_that_the_optimizer_was_given_must_be_in_the_layout() -> None:
    layout = shards((0, 0, 0, 6), (1, 6, 0, 4))
    verify(layout, engine="e", expected=[ParameterInfo("a", (6,))])
    with pytest.raises(RuntimeError, match="0 of 5 elements of c"):
        verify(layout, engine="e", expected=[ParameterInfo("c", (5,))])


def _moved(offsets: Any) -> None:
    for group in offsets:
        group[:] = [offset + 1 for offset in group]


def _swapped(groups: Any) -> None:
    for group in groups:
        group.reverse()


def _shifted_parts(wrapper: Any) -> None:
    for group in wrapper.fp16_groups:
        for model in group:
            numel = model.partition_numel()
            model.partition_numel = lambda numel=numel: numel - 1


FAULTS: dict[str, tuple[dict[str, Any], Callable[[Any], None]]] = {
    "zero1-moved": ({"zero": {"stage": 1}}, lambda e: _moved(e.optimizer.round_robin_bit16_offsets)),
    "zero1-swapped": ({"zero": {"stage": 1}}, lambda e: _swapped(e.optimizer.round_robin_bit16_groups)),
    "zero2-moved": ({"zero": {"stage": 2}}, lambda e: _moved(e.optimizer.round_robin_bit16_offsets)),
    "zero2-dropped": ({"zero": {"stage": 2}}, lambda e: [
        (g.pop(), o.pop())
        for g, o in zip(e.optimizer.round_robin_bit16_groups, e.optimizer.round_robin_bit16_offsets, strict=True)
    ]),
    "bf16-swapped": (
        {"zero": {"stage": 1}, "bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}},
        lambda e: _swapped(e.optimizer.bf16_groups),
    ),
    "zero0-bf16-swapped": (
        {"zero": {"stage": 0}, "bf16": {"enabled": True}}, lambda e: _swapped(e.optimizer.fp16_groups),
    ),
    "zero3-swapped": ({"zero": {"stage": 3}}, lambda e: _swapped(e.optimizer.fp16_groups)),
    "zero3-parts": ({"zero": {"stage": 3}}, lambda e: _shifted_parts(e.optimizer)),
    "zero3-not-persistent": (
        {"zero": {"stage": 3, "stage3_param_persistence_threshold": 0}}, lambda e: _shifted_parts(e.optimizer),
    ),
}  # fmt: skip


def _attach_with(case: str) -> str:
    keywords, fault = FAULTS[case]
    ds_engine, _ = sharded.engine("lamb", attach=False, **keywords)
    fault(ds_engine)
    try:
        attach(ds_engine)
    except RuntimeError as error:
        return str(error)
    return ""


@covering(lambda case: case in ("zero1-moved", "zero3-parts"))
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("case", FAULTS)
def test_fields_that_do_not_mean_what_they_meant(ranks: Ranks, case: str) -> None:
    import deepspeed

    for message in ranks.run(_attach_with, case):
        assert f"of DeepSpeed {deepspeed.__version__} is not that of the model" in message
        assert ".weight" in message or "the ranks list different parameters" in message


def _one_rank_only() -> str:
    """The fault is on rank 1 alone: rank 0 must raise too, or it hangs in its next collective."""
    ds_engine, _ = sharded.engine("adamw", {"stage": 2}, attach=False)
    if dist.get_rank() == 1:
        _moved(ds_engine.optimizer.round_robin_bit16_offsets)
    try:
        attach(ds_engine)
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_all_ranks_raise(ranks: Ranks) -> None:
    assert all("is not that of the model" in message for message in ranks.run(_one_rank_only))


def _loaded_after_initialize() -> str:
    ds_engine, _ = sharded.engine("adamw", {"stage": 2}, attach=False, bf16={"enabled": True})
    with torch.no_grad():
        ds_engine.module.odd.weight.mul_(2)
    try:
        attach(ds_engine)
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_weights_that_the_first_step_would_undo_are_refused(ranks: Ranks) -> None:
    """DeepSpeed's masters do not have weights that were loaded into the model later."""
    assert all("elements of odd.weight are not" in message for message in ranks.run(_loaded_after_initialize))


def _zero_redundancy(fault: bool) -> str:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    outer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=AdamW)
    if fault and dist.get_rank() == 0:
        outer.optim.param_groups[0]["params"].pop()
    try:
        attach(outer)
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_zero_redundancy_optimizer_is_verified(ranks: Ranks) -> None:
    assert ranks.run(_zero_redundancy, False) == ["", ""]
    assert all("of torch" in message for message in ranks.run(_zero_redundancy, True))


def _use_shards() -> str:
    """Each rank says that it has the first half."""
    half = nn.Parameter(torch.ones(4))
    optimizer = Lamb([half])
    shard = ShardLayout(half, (ParameterInfo("a", (8,)),), (ParameterSlice(0, 0, 0, 4),), dist.group.WORLD)
    try:
        optimizer.use_shards([shard])
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_use_shards_verifies_coverage(ranks: Ranks) -> None:
    assert all("elements of a are on no rank" in message for message in ranks.run(_use_shards))


def test_every_engine_is_verified() -> None:
    assert layouts.verify is verify
