"""Sharded equals unsharded: every optimizer, ZeRO stage and world size against a float64 reference on one process.

The tolerance is 1e-6 relative in the norm of each parameter after 20 steps: fp32 weights alone round by 6e-8 a step.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.optimizers import sharded
from tests.optimizers.family import FAMILY, REPRESENTATIVES, SHARDED, Member
from tests.optimizers.reference import Result, Weights, minimise
from tests.precision import skip_without
from tests.ranks import Ranks
from tests.tiers import covering

BAR = 1e-6
_expected: dict = {}


def expected(rule: str, clip: float = 0.0, start: str = "fp32") -> Result:
    if (rule, clip, start) not in _expected:
        w = sharded.weights()
        if start == "bf16":
            w = {k: torch.tensor(v).bfloat16().float().numpy() for k, v in w.items()}
        member = FAMILY[rule]
        if member.spec is None:
            _expected[rule, clip, start] = unsharded(member, w, clip)
        else:
            _expected[rule, clip, start] = minimise(
                member.spec,
                w,
                sharded.gradients,
                steps=sharded.STEPS,
                lr=member.lr,
                options=sharded.options(),
                clip=clip,
            )
    return _expected[rule, clip, start]


def unsharded(member: Member, weights: Weights, clip: float) -> Result:
    """The optimizer's own code on whole parameters in float64, for an optimizer without a `Spec`."""
    params = {k: torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for k, v in weights.items()}
    options = sharded.options()
    # As in sharded.param_groups: the trust ratio is off for some groups, and has the optimizer's default for the others.
    groups = [{"params": [(k, params[k])], "weight_decay": o["weight_decay"]} for k, o in options.items()]
    for group, option in zip(groups, options.values(), strict=True):
        if not option["trust_ratio"]:
            group["trust_ratio"] = False
    optimizer = member.make(member.groups(groups), member.lr)
    for step in range(sharded.STEPS):
        g = sharded.gradients(step, {k: p.detach().numpy() for k, p in params.items()})
        norm = np.sqrt(sum(float((g[k] ** 2).sum()) for k in options))
        for k in options:
            params[k].grad = torch.tensor(g[k] * (clip / (norm + 1e-6) if clip and norm > clip else 1.0))
        optimizer.step()
    return Result({k: p.detach().numpy() for k, p in params.items()}, optimizer.trust_ratios(), {}, 0)


def assembled(results: list[dict]) -> dict[str, np.ndarray]:
    """Whole parameters from the slices of all ranks. Every element must be owned, and replicas must be equal."""
    whole = {n: np.full(int(np.prod(s)), np.nan) for n, s in sharded.SHAPES.items() if n != "frozen"}
    for result in results:
        for name, slices in result["owned"].items():
            for start, values in slices:
                slot = whole[name][start : start + len(values)]
                assert np.isnan(slot).all() or (slot == values).all()
                slot[:] = values
    return whole


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found.ravel() - wanted.ravel()) / np.linalg.norm(wanted.ravel()))


def check(results: list[dict], rule: str, clip: float = 0.0) -> None:
    wanted, multiple = expected(rule, clip), FAMILY[rule].tolerance
    masters = assembled(results)
    for name in masters:
        assert error(masters[name], wanted.weights[name]) < BAR * multiple.get(name, 1), name
    for result in results:
        for name, value in result["model"].items():
            assert error(value, wanted.weights[name]) < BAR * multiple.get(name, 1), name
        # If ranks update different whole parameters, each reports its own.
        assert result["ratios"].keys() == (wanted.ratios.keys() & result.get("mine", wanted.ratios.keys()))
        for name, ratio in result["ratios"].items():
            assert ratio == pytest.approx(wanted.ratios[name], rel=1e-5), name
    if wanted.averages:
        for name, value in assembled([r["averaged"] for r in results]).items():
            assert error(value, wanted.averages[name]) < BAR, name
        for result in results:
            for name in wanted.averages:
                assert error(result["averaged"]["model"][name], wanted.averages[name]) < BAR, name


def groups_with_ratio() -> int:
    return sum(adapted for _, adapted in sharded.kinds())


@covering(lambda rule, stage, ranks: rule in REPRESENTATIVES or (stage == 2 and ranks == 2))
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("rule", SHARDED)
def test_sharded_equals_unsharded(ranks: Ranks, rule: str, stage: int) -> None:
    results = ranks.run(sharded.train, rule, {"stage": stage})
    check(results, rule)
    if stage and ranks.world_size == 4:
        assert any(r["padding"] for r in results), "no padding was poisoned"
        assert any(r["idle"] for r in results), "every rank owns a slice of every tensor"
    # One step() call for each param group under ZeRO; one all-reduce in those with trust ratios, none in the others.
    # Swats has one all-reduce to compare Adam's step with the gradient, in the two steps before it switches.
    # Muon has two all-to-alls in those with matrices, and two all-gathers before the first.
    groups, adapted = (results[0]["groups"], groups_with_ratio()) if stage else (1, 0)
    reduces = adapted * sharded.STEPS if expected(rule).ratios else 2 * groups if rule == "swats" and stage else 0
    reduces += results[0]["matrices"] * (2 * sharded.STEPS + 2) if stage else 0
    assert all(r["calls"] == groups * sharded.STEPS and r["reduces"] == reduces for r in results)


# Pinned memory needs a GPU.
OFFLOAD = {"device": "cpu", "pin_memory": False}


@covering(lambda rule, ranks: rule == "lamb" or (rule in REPRESENTATIVES and ranks == 2))
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("rule", SHARDED)
def test_offloaded_optimizer(ranks: Ranks, rule: str, stage: int) -> None:
    check(ranks.run(sharded.train, rule, {"stage": stage, "offload_optimizer": OFFLOAD}), rule)


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
    "zero3-init-offload": {"zero": {"stage": 3, "offload_optimizer": OFFLOAD, "sub_group_size": 50}, "init": True},
    "zero3-no-persistence": {"zero": {"stage": 3, "stage3_param_persistence_threshold": 0}},
}


@covering(lambda rule, case, ranks: ranks == 2 and rule == ("nvlamb" if "clip" in case else "lamb"))
@pytest.mark.parametrize("ranks", [2, 4], indirect=True)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", ["lamb", "nvlamb", "radam"])
def test_cases(ranks: Ranks, rule: str, case: str) -> None:
    keywords = dict(CASES[case])
    zero = keywords.pop("zero")
    results = ranks.run(_train, rule, zero, keywords)
    check(results, rule, clip=keywords.get("clip", 0.0))
    if "sub-groups" in case:
        assert results[0]["shards"] > groups_with_ratio() + 1


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


@covering(lambda rule, ranks: rule in REPRESENTATIVES and ranks == 2)
@pytest.mark.parametrize("ranks", [2, 4], indirect=True)
@pytest.mark.parametrize(
    ("stage", "rule"), [(1, rule) for rule in SHARDED] + [(s, r) for s in (0, 2, 3) for r in ("lamb", "adamw", "swats")]
)
def test_bf16_keeps_fp32_masters(ranks: Ranks, rule: str, stage: int) -> None:
    """Gradients have 8 bits here: an error of at most 2^-9 each, the tolerance for a weight that starts at 0."""
    skip_without("bf16", ranks)
    results = ranks.run(_bf16, rule, stage, 2 if stage and ranks.world_size == 2 else 1)
    assert {r["wrapper"] for r in results} == {WRAPPERS[stage]}
    wanted = expected(rule, 0.0, "bf16")
    for name, master in assembled(results).items():
        assert error(master, wanted.weights[name]) < 2**-9 * FAMILY[rule].tolerance.get(name, 1), name
        assert not (master == torch.tensor(master).bfloat16().double().numpy()).all(), f"{name}: a bf16 master"
    for result in results:
        # With norms over parts of tensors the error would be tens of percent.
        assert result["ratios"] == pytest.approx(wanted.ratios, rel=0.01)
    if stage == 1 and rule == "lamb":
        # BF16_Optimizer updates all groups in one step() call: one all-reduce for all of them.
        assert groups_with_ratio() > 1
        assert all(r["calls"] == r["reduces"] == sharded.STEPS for r in results)


def _train(rule: str, zero: dict, keywords: dict) -> dict:
    return sharded.train(rule, zero, **keywords)
