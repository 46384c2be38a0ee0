"""Sharded equals unsharded: every optimizer, ZeRO stage and world size against a float64 reference on one process.

The bar is 1e-6 relative in the norm of each parameter after 20 steps: fp32 weights alone round by 6e-8 a step.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.optimizers import sharded
from tests.optimizers.reference import minimise
from tests.ranks import Ranks

BAR = 1e-6
_expected: dict = {}


def expected(rule: str, clip: float, start: str = "fp32"):
    if (rule, clip, start) not in _expected:
        w = sharded.weights()
        if start == "bf16":
            import torch

            w = {k: torch.tensor(v).bfloat16().float().numpy() for k, v in w.items()}
        _expected[rule, clip, start] = minimise(
            rule,
            w,
            sharded.gradients,
            steps=sharded.STEPS,
            lr=sharded.LR,
            options=sharded.options(),
            clip=clip,
        )
    return _expected[rule, clip, start]


def assembled(results: list[dict]) -> dict[str, np.ndarray]:
    """Whole parameters from all ranks' pieces; every element must be owned, replicas must agree."""
    whole = {n: np.full(int(np.prod(s)), np.nan) for n, s in sharded.SHAPES.items() if n != "frozen"}
    for result in results:
        for name, pieces in result["owned"].items():
            for start, values in pieces:
                there = whole[name][start : start + len(values)]
                assert np.isnan(there).all() or (there == values).all()
                there[:] = values
    return whole


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found.ravel() - wanted.ravel()) / np.linalg.norm(wanted.ravel()))


def check(results: list[dict], rule: str, clip: float) -> None:
    weights, ratios = expected(rule, clip)
    masters = assembled(results)
    for name in masters:
        assert error(masters[name], weights[name]) < BAR, name
    for result in results:
        for name, value in result["model"].items():
            assert error(value, weights[name]) < BAR, name
        if rule == "lamb":
            assert result["ratios"].keys() == ratios.keys()
            for name, ratio in ratios.items():
                assert result["ratios"][name] == pytest.approx(ratio, rel=1e-5), name
        else:
            assert result["ratios"] == {}


def groups_with_ratio() -> int:
    return sum(adapted for _, adapted in sharded.kinds())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("rule", ["lamb", "adamw", "radam"])
def test_sharded_equals_unsharded(ranks: Ranks, rule: str, stage: int) -> None:
    results = ranks.run(sharded.train, rule, {"stage": stage})
    check(results, rule, clip=0.0)
    if stage and ranks.world_size == 4:
        assert any(r["padding"] for r in results), "no padding was poisoned"
        assert any(r["idle"] for r in results), "every rank owns a piece of every tensor"
    if stage:
        # One step() call a param group; one all-reduce in each that has trust ratios, none in the others.
        groups, adapted = len(sharded.kinds()), groups_with_ratio() if rule == "lamb" else 0
        assert all(r["calls"] == groups * sharded.STEPS and r["reduces"] == adapted * sharded.STEPS for r in results)
    else:
        assert all(r["reduces"] == 0 for r in results)


CASES = {
    "zero1-clip": {"zero": {"stage": 1}, "clip": 1.0},
    "zero2-clip-accumulation": {"zero": {"stage": 2}, "clip": 1.0, "accumulation": 2},
    "zero3-clip-accumulation": {"zero": {"stage": 3}, "clip": 1.0, "accumulation": 2},
    "zero0-clip-accumulation": {"zero": {"stage": 0}, "clip": 1.0, "accumulation": 2},
    "zero1-round-robin": {"zero": {"stage": 1, "round_robin_gradients": True}},
    "zero2-round-robin": {"zero": {"stage": 2, "round_robin_gradients": True}},
    "zero2-overlap": {"zero": {"stage": 2, "overlap_comm": True, "contiguous_gradients": False}},
    "zero3-sub-groups": {"zero": {"stage": 3, "sub_group_size": 50}},
    "zero3-init": {"zero": {"stage": 3}, "init": True},
    "zero3-init-sub-groups": {"zero": {"stage": 3, "sub_group_size": 50}, "init": True, "clip": 1.0},
    "zero3-no-persistence": {"zero": {"stage": 3, "stage3_param_persistence_threshold": 0}},
}


@pytest.mark.parametrize("ranks", [2, 4], indirect=True)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", ["lamb", "adamw", "radam"])
def test_cases(ranks: Ranks, rule: str, case: str) -> None:
    keywords = dict(CASES[case])
    zero = keywords.pop("zero")
    results = ranks.run(_train, rule, zero, keywords)
    check(results, rule, clip=keywords.get("clip", 0.0))
    if "sub-groups" in case:
        assert results[0]["shards"] > groups_with_ratio() + 1


def _ddp(rule: str) -> dict:
    import torch
    from torch.nn.parallel import DistributedDataParallel

    import optimizers

    make = {"lamb": optimizers.Lamb, "adamw": optimizers.AdamW, "radam": optimizers.RAdam}[rule]
    model = sharded.Toy()
    optimizer = make(sharded.param_groups(model), lr=sharded.LR)
    parallel = DistributedDataParallel(model)
    _, reduces = sharded._count(optimizer)
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    share = sharded.GLOBAL_BATCH // world
    for step in range(sharded.STEPS):
        batch = {k: torch.tensor(v[rank * share : (rank + 1) * share]) for k, v in sharded.targets(step).items()}
        optimizer.zero_grad()
        parallel(batch).backward()
        optimizer.step()
    weights = {n.removesuffix(".weight"): p.detach().double().numpy() for n, p in model.named_parameters()}
    ratios = {k.removesuffix(".weight"): v for k, v in optimizer.trust_ratios().items()}
    return {"owned": sharded.owned(optimizer), "model": weights, "ratios": ratios, "reduces": len(reduces)}


@pytest.mark.parametrize("rule", ["lamb", "adamw", "radam"])
def test_ddp(ranks: Ranks, rule: str) -> None:
    results = ranks.run(_ddp, rule)
    for result in results:
        result["owned"].pop("frozen", None)
        assert result["reduces"] == 0
    check(results, rule, clip=0.0)


def _train(rule: str, zero: dict, keywords: dict) -> dict:
    return sharded.train(rule, zero, **keywords)
