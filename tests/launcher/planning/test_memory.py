"""Memory as it is foretold, beside what the real engine holds on real ranks."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.planning import activations, memory
from launcher.planning.estimate import states
from tests.launcher.planning.truth import data_of, train
from tests.ranks import Ranks
from trainer.config import validate

BERT = {
    "model": {"kind": "bert", "size": "mini", "dropout": 0.1},
    "data": {"kind": "text", "vocabulary_size": 2048, "sequence_length": 64},
}
RESNET = {"model": {"kind": "cifar-resnet", "depth": 20}, "data": {"kind": "images", "size": 32}}


def config_of(subject: dict[str, Any], **engine: Any) -> dict[str, Any]:
    # With its usual first scale fp16 skips the few steps that are taken here, and the rule never makes its state.
    given = {"zero_optimization": {"reduce_bucket_size": 500_000}, "fp16": {"initial_scale_power": 4}}
    return {
        **subject, "name": "x", "duration": "10 steps", "batch": {"global": 8, "micro": 8},
        "optimizer": {"name": "lamb", "lr": 1e-3}, "engine": {"deepspeed": given, **engine},
    }  # fmt: skip


CASES = [
    *((BERT, {"stage": stage, "precision": precision}, 2) for stage in range(4) for precision in ("fp32", "bf16")),
    (BERT, {"stage": 1, "precision": "fp16"}, 2),
    (BERT, {"stage": 2, "precision": "bf16", "activation_checkpointing": True}, 1),
    (RESNET, {"stage": 2, "precision": "fp32"}, 1),
]


@pytest.mark.parametrize("subject, engine, accumulation", CASES)
def test_memory_is_within_a_tenth_of_what_a_run_holds(
    ranks: Ranks, subject: dict[str, Any], engine: dict[str, Any], accumulation: int
) -> None:
    if ranks.world_size > 2:
        pytest.skip("two ranks show all that sharding does to memory")
    raw = config_of(subject, **engine)
    config = validate(raw)
    profile = activations.measure(config, data_of(config), on_gpu=False)
    how = memory.sharding(config, states(config))
    foretold = memory.peak(profile, how, ranks.world_size, 8, accumulation)
    between = memory.resident(profile, how, ranks.world_size)
    seen = max(ranks.run(train, raw, accumulation), key=lambda s: s.peak)
    # What is asked for. Most are within 1 %; stage 3 is foretold too large where a whole model fits in what it prefetches.
    assert foretold.total == pytest.approx(seen.peak, rel=0.1)
    # No guess in these: only scalars, such as counters and loss scales, are left out.
    assert between.total == pytest.approx(seen.between, rel=0.005)
    assert between.optimizer == pytest.approx(seen.optimizer, rel=0.005)
    assert between.parameters == pytest.approx(seen.parameters, rel=0.005)
