"""The memory of real steps against what `bellwether plan` computes."""

from __future__ import annotations

from typing import Any

from bellwether.trainer.config import validate
from bellwether.trainer.memory import activations
from bellwether.trainer.memory.peak import peak
from bellwether.trainer.memory.sharding import Sharding, state_tensors
from scripts.gpu_suite import steps, workloads
from scripts.gpu_suite.context import Context

TOLERANCE = 0.1  # the planner leaves a tenth of a GPU's memory to what it does not compute
DRY_TOLERANCE = 0.25  # in models as small as these, single buffers are some percent


def cases(dry: bool) -> list[tuple[str, dict[str, Any]]]:
    """Name and config of each."""
    if dry:
        return [("BERT-tiny, fp32, ZeRO-2", workloads.bert(dry, 512, 64, engine={"stage": 2}))]
    checkpointing = {"stage": 3, "activation_checkpointing": True}
    return [
        ("BERT-large 128, bf16, ZeRO-1", workloads.bert(dry, 128, 256)),
        ("BERT-large 512, bf16, ZeRO-2", workloads.bert(dry, 512, 64, engine={"stage": 2})),
        ("BERT-large 512, bf16, ZeRO-3, checkpointing", workloads.bert(dry, 512, 64, engine=checkpointing)),
        ("ResNet-50, bf16, ZeRO-1", workloads.resnet(dry, 256)),
        ("ResNet-50, fp32, ZeRO-0", workloads.resnet(dry, 128, engine={"stage": 0, "precision": "fp32"})),
    ]


def run(context: Context) -> None:
    for name, raw in cases(context.dry):
        if context.dry:  # DeepSpeed's default buffers would be most of so small a model's memory
            raw = workloads.merged(
                raw, {"engine": {"deepspeed": {"zero_optimization": {"reduce_bucket_size": 2_000_000}}}}
            )
        measured, planned = _measured(context, raw), _planned(raw, on_gpu=not context.dry)
        error = planned / measured - 1
        context.row(
            run=name, **{"measured GiB": measured / 2**30, "planned GiB": planned / 2**30, "error %": 100 * error}
        )
        allowed = DRY_TOLERANCE if context.dry else TOLERANCE
        context.check(f"{name}: the plan is within {allowed:.0%}", abs(error) <= allowed, f"{error:+.1%}")


def _planned(raw: dict[str, Any], on_gpu: bool) -> float:
    config = validate({"name": "x", "duration": "10 steps", **raw})
    profile = activations.measure(config, steps.dataset(config), on_gpu=on_gpu)
    sharding = Sharding.from_config(config, state_tensors(config, profile), profile.elements)
    return peak(profile, sharding, 1, config.batch.micro, 1).total


def _measured(context: Context, raw: dict[str, Any]) -> float:
    """The peak of some updates: of torch's allocator on a GPU; on a CPU, all storages are counted."""
    if not context.dry:
        peak = steps.measure(raw, context.world, count=2, warmup=2).peak
        assert peak is not None
        return peak
    from tests.experiments.planner.truth import train

    assert context.world.size == 1
    return train({"name": "x", "duration": "10 steps", **raw}, 1).peak
