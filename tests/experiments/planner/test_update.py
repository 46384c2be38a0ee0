"""The memory and traffic of an optimizer's update against those of real updates."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bellwether.experiments.planner.gpus import GPUS
from bellwether.experiments.planner.network import Network, collectives
from bellwether.experiments.planner.step_time import Machines, iteration_time
from bellwether.optimizers import rounding
from bellwether.optimizers.muon import newton_schulz
from bellwether.optimizers.shards.layout import ShardLayout
from bellwether.trainer.config import validate
from bellwether.trainer.memory import activations, update
from bellwether.trainer.memory import peak as memory
from bellwether.trainer.memory.live_bytes import LiveBytes
from bellwether.trainer.memory.sharding import Sharding, state_tensors
from tests.experiments.planner.truth import data_of, train
from tests.precision import skip_without
from tests.ranks import Ranks
from tests.tiers import covering

# Mostly matrices, and few activations.
BERT = {
    "model": {"kind": "bert", "size": "mini", "dropout": 0.0},
    "data": {"kind": "text", "vocabulary_size": 256, "sequence_length": 16},
    "name": "x", "duration": "10 steps", "batch": {"global": 2, "micro": 2},
}  # fmt: skip
WITHOUT_MASTERS = {"bf16": {"bf16_master_weights_and_grads": True}}
STOCHASTIC = {"stochastic_rounding": True}

CASES: dict[
    str, tuple[int, str, dict[str, Any], bool]
] = {  # stage, optimizer, its options, whether there are fp32 masters
    "muon, 0": (0, "muon", {}, True),
    "muon, 2": (2, "muon", {}, True),
    "muon, 2, groups": (2, "muon", {"layer_decay": 0.9}, True),
    "muon, 2, fp32": (2, "muon", {"ns_dtype": "fp32"}, True),
    "muon, 3": (3, "muon", {}, True),
    "muon, 1, no masters": (1, "muon", {}, False),
    "muon, 2, rounding": (2, "muon", STOCHASTIC, False),
    "muon, 3, rounding": (3, "muon", STOCHASTIC, False),
    "lamb, 3, no masters": (3, "lamb", {}, False),
    "lamb, 2, rounding": (2, "lamb", STOCHASTIC, False),
    "lamb, 3, rounding": (3, "lamb", STOCHASTIC, False),
    "swats, 2": (2, "swats", {}, True),
    "schedule-free, 2": (2, "schedule-free-adamw", {}, True),
}


def config_of(stage: int, optimizer: str, options: dict[str, Any], masters: bool) -> dict[str, Any]:
    deepspeed = {"zero_optimization": {"reduce_bucket_size": 500_000}, **({} if masters else WITHOUT_MASTERS)}
    engine = {"stage": stage, "precision": "bf16", "deepspeed": deepspeed}
    schedule = {"kind": "constant"} if optimizer.startswith("schedule-free") else {}
    return {**BERT, "optimizer": {"name": optimizer, "lr": 1e-3, **options}, "engine": engine, "schedule": schedule}


@covering(lambda case, ranks: ranks == 2 and case == "muon, 2, rounding")
@pytest.mark.parametrize("case", CASES)
def test_memory_and_traffic_of_the_update_match_a_real_one(ranks: Ranks, case: str) -> None:
    if ranks.world_size > 2:
        pytest.skip("two ranks show all that sharding does to memory")
    skip_without("bf16", ranks)
    raw = config_of(*CASES[case])
    config = validate(raw)
    profile = activations.measure(config, data_of(config), on_gpu=False)
    states = state_tensors(config, profile)
    sharding = Sharding.from_config(config, states, profile.elements, world_size=ranks.world_size, on_gpu=False)
    moments = memory.moments(profile, sharding, ranks.world_size, 2, 1)
    (estimated,) = (moment.total for moment in moments if moment.moment == "update")
    results = ranks.run(train, raw, 1)
    # Swats computes dot products of float64 copies of a chunk, which are not counted.
    assert estimated == pytest.approx(max(result.update for result in results), rel=0.05 if "swats" in case else 0.01)
    if ranks.world_size == 1:
        return
    traffic = collectives(profile, sharding, 1, ranks.world_size)
    sent = sum(collective.size for collective in traffic if collective.kind == "all-to-all")
    counted = sum(result.sent.get("alltoall_base", 0) for result in results) / ranks.world_size
    assert sent == pytest.approx(counted, rel=0.05)
    assert (sent > 0) == ("muon" in case and CASES[case][0] > 0)


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (32, 32), (8, 3, 3, 3)])
def test_workspace_of_an_iteration(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape).flatten(1)
    with LiveBytes([matrix]) as live:
        newton_schulz(matrix, (3.4445, -4.775, 2.0315), 5, 1e-7)
    assert live.peak == pytest.approx(4 * update.newton_schulz_elements(shape), abs=16)


def test_random_numbers_of_the_reference_kernel() -> None:
    """A second slice is rounded while the numbers of the first exist."""
    wide, two = torch.randn(20_000), torch.randn(10_000)
    layout = ShardLayout.whole(two, "w")
    slices = (*layout.slices, type(layout.slices[0])(0, 10_000, 0, 10_000))
    layout = ShardLayout(wide, layout.parameters, slices, None)
    with LiveBytes([wide]) as live:
        rounding.round_stochastically(wide, layout, 0, 1, torch.bfloat16)
    assert live.peak == pytest.approx(2 * 20_000 + update._RANDOM_BYTES * 10_000, rel=0.01)


def test_swats_has_the_state_of_its_base() -> None:
    config = validate(config_of(2, "swats", {}, True))
    assert state_tensors(config, activations.Profile([[3]], [False], [], 0.0, 0.0, 0.0)) == 2


def test_time_of_muon_has_the_iteration_and_the_exchange() -> None:
    """768 x 768: 5 iterations of 2 x 3 x 768^3 operations; twelve of them on each of two ranks, where one has 24."""
    n = 768
    profile = activations.Profile([[n * n] * 24], [True], [], 0.0, 0.0, 0.0, [[(n, n)] * 24])
    config = validate(config_of(2, "muon", {}, True))
    machines = Machines(GPUS["a100"], 1, 2)
    alone, together = (
        iteration_time(profile, Sharding.from_config(config, 1, profile.elements, 2, world_size=w), machines, config, w)
        for w in (1, 2)
    )
    assert alone == pytest.approx(24 * 5 * 2 * 3 * n**3 / (312e12 * config.model.matrix_efficiency))
    assert together == alone / 2
    sharding = Sharding.from_config(config, 1, profile.elements, 2, world_size=2)
    (exchange,) = (c for c in collectives(profile, sharding, 1, 2) if c.kind == "all-to-all")
    assert (exchange.size, exchange.count) == (
        2 * 2 * profile.elements / 2,
        2 * 4,
    )  # there and back, in bf16, in chunks
    network = Network(per_node=2, link=1e9, port=1e8, hop_in=0.0, hop_out=0.0, start=0.0)
    assert network.seconds("all-to-all", 4e9, 2) == 2.0  # a half stays
    assert network.seconds("all-to-all", 4e9, 4) == 1.0 + 20.0  # a quarter within the node, a half to the other
