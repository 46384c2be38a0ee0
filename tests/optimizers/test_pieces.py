"""Norms over pieces: several fragments of one tensor on a rank, padding, and a group that lacks some."""

from __future__ import annotations

import pytest
import torch

from optimizers import AdamW, Lamb, attach
from optimizers.shards.pieces import Parameter, Piece, Shard, cut, squared_norms
from tests.optimizers import sharded
from tests.ranks import Ranks


def test_fragments_of_one_tensor_add_up() -> None:
    """Apex's DistributedFusedLAMB overwrites here where it should add."""
    flat = torch.tensor([3.0, float("nan"), 4.0, 7.0, 12.0])
    shard = Shard(flat, (Parameter("a", (3,)), Parameter("b", (1,)), Parameter("elsewhere", (9,))),
                  (Piece(0, 0, 0, 1), Piece(0, 2, 1, 1), Piece(1, 3, 0, 1), Piece(0, 4, 2, 1)), None)  # fmt: skip
    assert squared_norms(shard, flat).tolist() == [[169.0, 49.0, 0.0]]


def test_lamb_on_fragments_equals_lamb_on_the_whole() -> None:
    """One flat tensor that holds `a` in two fragments with `b` between, and padding that holds NaN."""
    a, b = torch.randn(6), torch.randn(4)
    whole = [torch.nn.Parameter(a.clone()), torch.nn.Parameter(b.clone())]
    flat = torch.nn.Parameter(torch.cat([a[:2], b, torch.tensor([float("nan")]), a[2:]]))
    shard = Shard(
        flat,
        (Parameter("a", (6,)), Parameter("b", (4,))),
        (Piece(0, 0, 0, 2), Piece(1, 2, 0, 4), Piece(0, 7, 2, 4)),
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
    layout = [(Parameter("a", (2, 2)), 0), (Parameter("b", (7,)), 4), (Parameter("c", ()), 12)]
    assert cut(layout, begin, end) == tuple(Piece(*w) for w in wanted)


def _unattached(rule: str, stage: int) -> str:
    made, _ = sharded.engine(rule, {"stage": stage}, attach=False)
    try:
        sharded.feed(made, 0)
    except RuntimeError as error:
        return str(error)
    finally:
        made.destroy()
    return ""


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("rule", ["lamb", "adamw"])
def test_a_step_without_attach_is_refused(ranks: Ranks, rule: str, stage: int) -> None:
    for message in ranks.run(_unattached, rule, stage):
        assert "optimizers.attach(engine)" in message


def test_attach_wants_an_engine() -> None:
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
def test_attach_refuses_anothers_optimizer(ranks: Ranks) -> None:
    assert all("AdamW" in message for message in ranks.run(_foreign_optimizer))


def _bf16(rule: str, stage: int, accumulation: int) -> dict:
    return sharded.train(
        rule, {"stage": stage}, accumulation=accumulation, bf16={"enabled": True},
        **({"data_types": {"grad_accum_dtype": "fp32"}} if stage else {}),
    )  # fmt: skip


WRAPPERS = {
    0: "FP16_UnfusedOptimizer",
    1: "BF16_Optimizer",
    2: "DeepSpeedZeroOptimizer",
    3: "DeepSpeedZeroOptimizer_Stage3",
}


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_keeps_fp32_masters(ranks: Ranks, stage: int) -> None:
    """Gradients carry 8 bits here, so the bar is theirs: 2^-8, divided by what 20 steps move of a weight."""
    from tests.optimizers.test_sharded import assembled, error, expected

    results = ranks.run(_bf16, "lamb", stage, 2 if stage else 1)
    assert {r["wrapper"] for r in results} == {WRAPPERS[stage]}
    weights, _ = expected("lamb", 0.0, "bf16")
    for name, master in assembled(results).items():
        assert error(master, weights[name]) < 2**-8, name
        assert not (master == torch.tensor(master).bfloat16().double().numpy()).all(), f"{name}: a bf16 master"
    if stage == 1:
        # BF16_Optimizer takes all groups in one step() call: one all-reduce for all of them.
        assert all(r["calls"] == r["reduces"] == sharded.STEPS for r in results)


@pytest.mark.parametrize("make", [Lamb, AdamW])
def test_zero_gradients_before_attach_change_nothing(make: type) -> None:
    """DeepSpeed's 16-bit wrapper steps with zero gradients while it is built: decay must not touch the weights."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = make([parameter], weight_decay=0.5, lr=0.1)
    master = torch.nn.Parameter(torch.ones(3))
    optimizer.param_groups[0]["params"] = [master]
    master.grad = torch.zeros(3)
    optimizer.step()
    assert master.tolist() == [1.0, 1.0, 1.0]
    assert not optimizer.state
