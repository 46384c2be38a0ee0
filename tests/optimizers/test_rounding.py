"""16-bit weights without fp32 masters move: stochastic rounding and Kahan summation."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from bellwether.optimizers import SGD, Adam, AdamW, Lamb, Lars, RAdam, rounding
from bellwether.optimizers.kernels import reference
from bellwether.optimizers.kernels.tensor_list import SegmentTable, TensorList
from bellwether.optimizers.shards.layout import Box, ParameterInfo, ParameterSlice, ShardLayout
from tests.optimizers import sharded
from tests.optimizers.test_sharded import assembled
from tests.ranks import Ranks
from tests.tiers import covering

REMEDIES: list[dict[str, Any]] = [{"stochastic_rounding": True}, {"kahan_sum": True}]


def _descended(dtype: torch.dtype, **options: Any) -> float:
    p = torch.nn.Parameter(torch.ones(256, dtype=dtype))
    optimizer = Lamb([p], lr=1e-3, weight_decay=0.0, **options)
    for _ in range(100):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert {k: v.dtype for k, v in optimizer.state[p].items() if k.startswith("exp")} == {
        "exp_avg": torch.float32, "exp_avg_sq": torch.float32,
    }  # fmt: skip
    return float(p.detach().double().mean())


@pytest.mark.parametrize("remedy", REMEDIES, ids=str)
def test_small_updates_of_bf16_weights_add_up(remedy: dict[str, Any]) -> None:
    """Without a remedy, a weight of 1 stays there for 100 steps of 1e-3."""
    exact = _descended(torch.float32)
    assert _descended(torch.bfloat16) == 1.0
    # Rounded at random in steps of 2^-8, 256 elements of 100 steps: a standard error below 1e-3 / 2.
    assert _descended(torch.bfloat16, **remedy) == pytest.approx(exact, abs=2e-3)
    assert exact == pytest.approx(0.905, abs=1e-3)


@pytest.mark.parametrize("remedy", REMEDIES, ids=str)
@pytest.mark.parametrize("kind", [Adam, AdamW, Lamb, Lars, RAdam, SGD])
def test_every_rule_follows_its_fp32_path(kind: type, remedy: dict[str, Any], kernel: str) -> None:
    start = torch.randn(64, 33, generator=torch.Generator().manual_seed(0)).bfloat16()
    params = [torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())]
    lr = 1.0 if kind is Lars else 1e-3
    pair = [kind([params[0]], lr=lr, kernel=kernel, **remedy), kind([params[1]], lr=lr)]
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        g = torch.randn(64, 33, generator=generator).add_(0.5).bfloat16()
        for p, optimizer in zip(params, pair, strict=True):
            p.grad = g.to(p.dtype)
            optimizer.step()
    change = float((params[1].detach() - start.float()).mean())
    assert float((params[0].detach().float() - start.float()).mean()) == pytest.approx(change, rel=0.1, abs=2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_right_on_average_and_to_a_neighbour(dtype: torch.dtype) -> None:
    values = [1.001, -3.3333, 0.1, 1e-5, -2e-8, 65000.0, 0.0, 1.0]
    wide = torch.tensor(values).repeat_interleave(20_000)
    shard = ShardLayout.whole(wide, "a")
    found = rounding.round_stochastically(wide, shard, 0, 1, dtype).view(len(values), -1)
    for value, rounded in zip(values, found, strict=True):
        steps = rounded.unique().double()
        assert len(steps) <= 2
        if len(steps) == 2:
            low, high = steps.tolist()
            assert low <= torch.tensor(value).item() <= high
            share = (torch.tensor(value).double().item() - low) / (high - low)
            assert float((rounded.double() == high).double().mean()) == pytest.approx(share, abs=0.015)
        else:
            assert steps.item() == torch.tensor(value).to(dtype).double().item()


def test_not_finite_values_are_kept_and_the_key_matters() -> None:
    wide = torch.tensor([float("nan"), float("inf"), -float("inf")])
    shard = ShardLayout.whole(wide, "a")
    assert str(rounding.round_stochastically(wide, shard, 0, 1, torch.bfloat16).tolist()) == "[nan, inf, -inf]"
    many = torch.full((1000,), 1.001)
    runs = [
        rounding.round_stochastically(many, ShardLayout.whole(many, name), seed, step, torch.bfloat16)
        for name, seed, step in (("a", 0, 1), ("b", 0, 1), ("a", 1, 1), ("a", 0, 2), ("a", 0, 1))
    ]
    assert torch.equal(runs[0], runs[4])
    for i, j in ((0, 1), (0, 2), (0, 3), (2, 3)):
        assert not torch.equal(runs[i], runs[j])


def test_a_part_is_rounded_as_in_the_whole() -> None:
    whole = torch.rand(3, 4, 5)
    wanted = rounding.round_stochastically(whole.reshape(-1), ShardLayout.whole(whole, "a"), 7, 3, torch.bfloat16)
    box = Box((3, 4, 5), (1, 0, 2), (2, 4, 2))
    part = whole[1:, :, 2:4].contiguous()
    shard = ShardLayout(part, (ParameterInfo("a", (3, 4, 5)),), box, None)
    found = rounding.round_stochastically(part.reshape(-1), shard, 7, 3, torch.bfloat16)
    assert torch.equal(found.view(2, 4, 2), wanted.view(3, 4, 5)[1:, :, 2:4])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # from NumPy, in which Triton's interpreter computes
@pytest.mark.parametrize("name", ["cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kahan", [False, True])
def test_kernels_convert_to_the_bit_as_torch_does(name: str, dtype: torch.dtype, kahan: bool) -> None:
    """Of numbers of every size, in a box, in slices beyond 2^32 and in a whole parameter; the padding keeps its value."""
    kernel: Any = pytest.importorskip(f"bellwether.optimizers.kernels.{name}")
    if kernel.DEVICE != "cpu":
        pytest.skip("this machine has a GPU")
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (12000,), dtype=torch.int32, generator=generator)
    values = torch.cat(
        [bits.view(torch.float32), torch.randn(12000, generator=generator), torch.tensor([0.0, torch.inf])]
    )
    many, part, flat = values[:20000], values[-1000:-856].view(12, 3, 4), values[5000:5100]
    far = (ParameterSlice(0, 3, 2**32 - 5, 20), ParameterSlice(1, 23, 7, 30), ParameterSlice(0, 60, 2**33 + 1, 9))
    shards = [
        ShardLayout.whole(many, "many"),
        ShardLayout(part, (ParameterInfo("box", (12, 8, 9)),), Box((12, 8, 9), (0, 2, 4), (12, 3, 4)), None),
        ShardLayout(flat, (ParameterInfo("a", (2**34,)), ParameterInfo("b", (50,))), far, None),
    ]
    found = []
    for chosen in (kernel, reference):
        narrow = [t.to(dtype) for t in (many, part, flat)]
        kept = [(t / 512).to(dtype) for t in (many, part, flat)] if kahan else None
        weights = [t.clone() for t in narrow]
        tensors = TensorList(weights, narrow, {}, SegmentTable.of(shards, by_parameter=True))
        widened, wide = rounding.widened(chosen, tensors, shards, kept)
        copies = [t.clone() for t in widened.weights]
        for t, new in zip(widened.weights, (many, part, flat), strict=True):
            t.copy_(new)
        rounding.round_back(chosen, wide, 3, 2**32 + 1)
        found.append(
            [(*columns, shard) for *columns, shard in zip(copies, weights, kept or weights, shards, strict=True)]
        )
    for ours, theirs in zip(*found, strict=True):
        for value, expected in zip(ours[:3], theirs[:3], strict=True):
            pairs = zip(ours[3].views(value), ours[3].views(expected), strict=True)
            for (_, x), (_, y) in pairs:
                assert x.nan_to_num(7.0).equal(y.nan_to_num(7.0))
    assert found[0][2][1][:3].equal(flat[:3].to(dtype))


def test_warns_once_without_a_remedy(caplog: pytest.LogCaptureFixture) -> None:
    rounding.warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        _descended(torch.bfloat16, kahan_sum=True)
        assert not caplog.records
        _descended(torch.bfloat16)
    assert [r.message for r in caplog.records if "stochastic_rounding=True" in r.message] == [caplog.records[0].message]


def test_both_remedies_are_refused() -> None:
    with pytest.raises(ValueError, match="stochastic_rounding=True with kahan_sum=True"):
        AdamW([torch.nn.Parameter(torch.ones(1))], stochastic_rounding=True, kahan_sum=True)


def _deepspeed(stage: int, remedy: dict[str, Any]) -> dict[str, Any]:
    import deepspeed

    from bellwether.optimizers import attach

    model = sharded.Toy()
    optimizer = Lamb(sharded.param_groups(model), lr=1e-3, **remedy)
    config = {
        "train_batch_size": sharded.GLOBAL_BATCH, "gradient_clipping": 0.0, "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True},
        "zero_optimization": {"stage": stage},
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    attach(engine)
    assert {shard.tensor.dtype for shard in optimizer.shards} == {torch.bfloat16}
    for step in range(30):
        sharded.feed(engine, step)
    found = sharded.owned(optimizer)
    engine.destroy()
    return {"owned": found}


def _unchanged(results: list[dict[str, Any]]) -> float:
    start = sharded.weights()
    pairs = [(v, torch.tensor(start[k]).bfloat16().double().numpy().ravel()) for k, v in assembled(results).items()]
    return float(np.mean(np.concatenate([found == before for found, before in pairs])))


@covering(lambda stage: stage == 1)
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_masters_of_deepspeed_move(ranks: Ranks, stage: int) -> None:
    plain, *remedied = (_unchanged(ranks.run(_deepspeed, stage, remedy)) for remedy in ({}, *REMEDIES))
    assert plain > 0.5
    assert all(share < plain / 2 for share in remedied), (plain, remedied)


def _fsdp2(remedy: dict[str, Any]) -> list[np.ndarray]:
    """bf16 weights, gradients that do not depend on the number of ranks."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(7, 5, bias=False), torch.nn.Linear(5, 3)).bfloat16()
    if dist.get_world_size() > 1:
        fully_shard(model)
    optimizer = AdamW(model.named_parameters(), lr=1e-3, **remedy)
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        for p in model.parameters():
            g = torch.randn(p.shape, generator=generator).bfloat16()
            p.grad = _sharded_like(g, p)
        optimizer.step()
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return [w.detach().float().numpy().copy() for w in whole]


def _sharded_like(g: torch.Tensor, p: Any) -> torch.Tensor:
    if not hasattr(p, "placements"):
        return g
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(g, p.device_mesh, p.placements)


_found: dict[str, list[np.ndarray]] = {}


@pytest.mark.parametrize("remedy", REMEDIES, ids=str)
def test_rounding_does_not_depend_on_the_number_of_ranks(ranks: Ranks, remedy: dict[str, Any]) -> None:
    for result in ranks.run(_fsdp2, remedy):
        first = _found.setdefault(str(remedy), result)
        assert all(np.array_equal(a, b) for a, b in zip(first, result, strict=True))
