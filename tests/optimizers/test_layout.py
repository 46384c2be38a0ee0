"""Norms over slices: several fragments of one parameter on a rank, padding, and parameters on other ranks."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bellwether.optimizers import AdamW, Lamb, attach
from bellwether.optimizers.kernels.coefficients import Coefficients
from bellwether.optimizers.kernels.tensor_list import SegmentTable, TensorList
from bellwether.optimizers.shards.layout import Box, ParameterInfo, ParameterSlice, ShardLayout, cut, sqrt
from tests.optimizers import coefficients_in_torch, sharded
from tests.precision import skip_without
from tests.ranks import Ranks


def test_square_roots_are_correctly_rounded() -> None:
    """Those of MKL, which torch uses on CPUs, are not on some processors."""
    squares = torch.rand(2, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e5
    squares[0, 0], squares[0, 1], squares[0, 2] = 0.0, torch.inf, torch.nan
    expected = [math.sqrt(square) for square in squares.flatten().tolist()]
    assert sqrt(squares).shape == (2, 500)
    assert str(sqrt(squares).flatten().tolist()) == str(expected)
    assert sqrt(squares[1].sum()).item() == math.sqrt(squares[1].sum().item())


def test_fragments_of_a_parameter_are_summed() -> None:
    """Apex's DistributedFusedLAMB overwrites the sum here instead of adding to it."""
    flat = torch.tensor([3.0, float("nan"), 4.0, 7.0, 12.0])
    shard = ShardLayout(flat, (ParameterInfo("a", (3,)), ParameterInfo("b", (1,)), ParameterInfo("elsewhere", (9,))),
                  (ParameterSlice(0, 0, 0, 1), ParameterSlice(0, 2, 1, 1), ParameterSlice(1, 3, 0, 1), ParameterSlice(0, 4, 2, 1)), None)  # fmt: skip
    layout = SegmentTable.of([shard], by_parameter=True)
    batch = TensorList([flat], [flat], {}, layout)
    sums = coefficients_in_torch.gradient_norms(batch, Coefficients("plain", rate=1.0))
    assert layout.sum_by_parameter(sums).tolist() == [[169.0, 49.0, 0.0]] * 2


def test_adjacent_slices_are_one_segment() -> None:
    """A matrix sharded by columns is many slices of the parameter, but contiguous in memory."""
    slices = (
        ParameterSlice(0, 0, 0, 2),
        ParameterSlice(0, 2, 4, 2),
        ParameterSlice(0, 4, 8, 2),
        ParameterSlice(1, 6, 0, 3),
        ParameterSlice(0, 10, 9, 1),
    )
    shard = ShardLayout(torch.zeros(11), (ParameterInfo("a", (10,)), ParameterInfo("b", (3,))), slices, None)
    assert shard.segments() == [(0, 6, 0), (6, 3, 1), (10, 1, 0)]


@pytest.mark.parametrize(
    ("corner", "size"),
    [((0, 0, 0), (3, 4, 5)), ((1, 0, 0), (2, 4, 5)), ((0, 1, 0), (3, 2, 5)), ((0, 0, 3), (3, 4, 2)), ((1, 2, 1), (2, 1, 3)), ((0, 0, 0), (0, 4, 5))],
)  # fmt: skip
def test_box_lists_the_elements_of_a_block(corner: tuple[int, ...], size: tuple[int, ...]) -> None:
    whole = torch.arange(60).view(3, 4, 5)
    block = whole[tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True))].reshape(-1)
    box = Box((3, 4, 5), corner, size)
    shard = ShardLayout(block, (ParameterInfo("a", (3, 4, 5)),), box, None)
    found = [whole.view(-1)[s.start : s.start + s.length] for s in box]
    assert torch.cat([*found, whole.new_zeros(0)]).tolist() == block.tolist()
    assert shard.segments() == ([(0, len(block), 0)] if len(block) else [])
    assert [s.offset for s in box] == [box.length * i for i in range(len(box))]


def _sharded_columns() -> tuple[int, int]:
    """Python objects that the layout of a DTensor takes which is sharded in its last dimension, and its slices."""
    import gc

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    weight = torch.nn.Parameter(distribute_tensor(torch.zeros(16, 256, 4), mesh, [Shard(2)]))
    optimizer = Lamb([weight])
    gc.collect()
    before = len(gc.get_objects())
    shard = optimizer.shards[0]
    SegmentTable.of([shard], by_parameter=True)
    return len(gc.get_objects()) - before, len(shard.slices)


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_columns_of_a_dtensor_are_not_an_object_per_row(ranks: Ranks) -> None:
    for objects, slices in ranks.run(_sharded_columns):
        assert slices == 16 * 256
        assert objects < 1000


def test_lamb_on_fragments_equals_lamb_on_whole_parameters() -> None:
    """One flat tensor with two fragments of `a` around `b`, and NaN in the padding."""
    a, b = torch.randn(6), torch.randn(4)
    whole = [torch.nn.Parameter(a.clone()), torch.nn.Parameter(b.clone())]
    flat = torch.nn.Parameter(torch.cat([a[:2], b, torch.tensor([float("nan")]), a[2:]]))
    shard = ShardLayout(
        flat,
        (ParameterInfo("a", (6,)), ParameterInfo("b", (4,))),
        (ParameterSlice(0, 0, 0, 2), ParameterSlice(1, 2, 0, 4), ParameterSlice(0, 7, 2, 4)),
        None,
    )
    plain, pieced = Lamb(whole, lr=0.1), Lamb([flat], lr=0.1)
    pieced.use_shards([shard])
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        ga, gb = torch.randn(6, generator=g), torch.randn(4, generator=g)
        whole[0].grad, whole[1].grad = ga, gb
        flat.grad = torch.cat([ga[:2], gb, torch.tensor([1e31]), ga[2:]])
        plain.step()
        pieced.step()
    torch.testing.assert_close(torch.cat([flat[:2], flat[7:]]).detach(), whole[0].detach())
    torch.testing.assert_close(flat[2:6].detach(), whole[1].detach())


@pytest.mark.parametrize(
    ("begin", "end", "wanted"),
    [
        (0, 5, [(0, 0, 0, 4), (1, 4, 0, 1)]),
        (5, 10, [(1, 0, 1, 5)]),
        (10, 15, [(1, 0, 6, 1), (2, 2, 0, 1)]),  # one element of padding between the second and third
        (15, 20, []),
    ],
)
def test_cut(begin: int, end: int, wanted: list) -> None:
    layout = [(ParameterInfo("a", (2, 2)), 0), (ParameterInfo("b", (7,)), 4), (ParameterInfo("c", ()), 12)]
    assert cut(layout, begin, end) == tuple(ParameterSlice(*w) for w in wanted)


def _unattached(rule: str, stage: int) -> str:
    ds_engine, _ = sharded.engine(rule, {"stage": stage}, attach=False)
    try:
        sharded.feed(ds_engine, 0)
    except RuntimeError as error:
        return str(error)
    finally:
        ds_engine.destroy()
    return ""


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("rule", ["lamb", "adamw"])
def test_step_without_attach_is_refused(ranks: Ranks, rule: str, stage: int) -> None:
    for message in ranks.run(_unattached, rule, stage):
        assert "bellwether.optimizers.attach(engine)" in message


def test_attach_refuses_other_objects() -> None:
    with pytest.raises(TypeError, match=r"deepspeed\.initialize"):
        attach(torch.nn.Linear(2, 2))


def _foreign_optimizer() -> str:
    import deepspeed

    model = sharded.Toy()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters()),
        config={
            "train_batch_size": 2,
            "zero_optimization": {"stage": 1},
            "zero_allow_untested_optimizer": True,
        },
    )
    try:
        attach(engine)
    except TypeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_attach_refuses_other_optimizers(ranks: Ranks) -> None:
    assert all("AdamW" in message for message in ranks.run(_foreign_optimizer))


def _through_deepspeeds_checkpoint(folder: str, stage: int, bf16: bool) -> list[dict]:
    """Train, save, train on; then load with DeepSpeed's load_checkpoint and train on again, without a second attach."""
    config = {"bf16": {"enabled": bf16}, **({"data_types": {"grad_accum_dtype": "fp32"}} if bf16 else {})}
    ds_engine, optimizer = sharded.engine("lamb", {"stage": stage, "sub_group_size": 500}, **config)
    for step in range(4):
        sharded.feed(ds_engine, step)
    ds_engine.save_checkpoint(folder)
    found = []
    for _ in range(2):
        for step in range(4, 8):
            sharded.feed(ds_engine, step)
        found.append({"owned": sharded.owned(optimizer), "ratios": optimizer.trust_ratios()})
        ds_engine.load_checkpoint(folder)
    ds_engine.destroy()
    return found


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize(("stage", "bf16"), [(1, False), (1, True), (2, False), (3, False)])
def test_shards_survive_deepspeeds_load_checkpoint(ranks: Ranks, tmp_path: Path, stage: int, bf16: bool) -> None:
    skip_without("bf16" if bf16 else "fp32", ranks)
    for first, again in ranks.run(_through_deepspeeds_checkpoint, str(tmp_path), stage, bf16):
        assert again["ratios"] == first["ratios"]
        assert "odd.weight" in first["ratios"]
        for name, slices in first["owned"].items():
            for (start, values), (other, found) in zip(slices, again["owned"][name], strict=True):
                assert start == other
                assert np.array_equal(values, found), name


def test_copy_of_attached_optimizer_requires_attach() -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = Lamb([parameter])
    optimizer.use_shards(
        [
            ShardLayout(
                parameter,
                (ParameterInfo("a", (2,)), ParameterInfo("b", (2,))),
                (ParameterSlice(0, 0, 0, 2), ParameterSlice(1, 2, 0, 2)),
                None,
            )
        ]
    )
    parameter.grad = torch.ones(4)
    optimizer.step()
    other = copy.deepcopy(optimizer)
    for p in other.param_groups[0]["params"]:
        p.grad = torch.ones(4)
    with pytest.raises(RuntimeError, match=r"optimizers\.attach\(engine\)"):
        other.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert set(optimizer.trust_ratios()) == {"a", "b"}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"zenflow": object()}, "zenflow"),
        ({"offload_optimizer": SimpleNamespace(device="cpu", ratio=0.5, super_offload=False)}, "ratio"),
        ({"offload_optimizer": SimpleNamespace(device="cpu", ratio=1.0, super_offload=True)}, "super_offload"),
        ({"offload_optimizer": SimpleNamespace(device="nvme", ratio=1.0, super_offload=False)}, "nvme"),
        ({"wrapper": True}, "not supported"),
    ],
)
def test_modes_that_bypass_the_optimizer_are_refused(changes: dict, key: str) -> None:
    """With a mock engine, because these modes need a GPU or NVMe."""
    optimizer = Lamb([torch.nn.Parameter(torch.ones(1))])
    wrapper = object() if changes.pop("wrapper", False) else optimizer
    zero = SimpleNamespace(**{"offload_optimizer": None, "zenflow": None, **changes})
    engine = SimpleNamespace(
        basic_optimizer=optimizer,
        optimizer=wrapper,
        module=torch.nn.Linear(1, 1),
        _config=SimpleNamespace(zero_config=zero),
    )
    with pytest.raises(NotImplementedError, match=key):
        attach(engine)


@pytest.mark.parametrize("make", [Lamb, AdamW])
def test_zero_gradients_before_attach_change_nothing(make: type) -> None:
    """DeepSpeed's 16-bit wrapper steps with zero gradients in its constructor: decay must not change the weights."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = make([parameter], weight_decay=0.5, lr=0.1)
    master = torch.nn.Parameter(torch.ones(3))
    optimizer.param_groups[0]["params"] = [master]
    master.grad = torch.zeros(3)
    optimizer.step()
    assert master.tolist() == [1.0, 1.0, 1.0]
    assert not optimizer.state
