"""Compares the memory that `bellwether plan` estimates with that of real runs: the table of docs/results/planner.md.

    .venv/bin/python -m scripts.validate_planner docs/results/planner.md

The runs use the trainer's engine, DeepSpeed, gloo and real processes; every storage is counted while they train. This takes
some minutes on two cores.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from scripts import results_page

BEGIN, END = "<!-- written by scripts/validate_planner.py -->", "<!-- end -->"
_MIB = 2**20

BERT = {
    "model": {"kind": "bert", "size": "mini", "dropout": 0.1},
    "data": {"kind": "text", "vocabulary_size": 8192, "sequence_length": 128},
}
RESNET = {"model": {"kind": "resnet", "depth": 18}, "data": {"kind": "images", "size": 64}}
LAMB, SGD = {"name": "lamb", "lr": 1e-3}, {"name": "sgd", "lr": 1e-3, "momentum": 0.9}
MUON = {"name": "muon", "lr": 1e-3}
AMSGRAD = {"name": "adamw", "lr": 1e-3, "amsgrad": True}


def cases() -> Iterator[tuple[str, int, dict[str, Any], int]]:
    """(name, world size, config, accumulation steps) of each row."""
    for world_size in (1, 2):
        for precision in ("fp32", "bf16"):
            for stage in range(4):
                yield "BERT-mini, lamb", world_size, _config(BERT, LAMB, 16, stage, precision), 2
    yield "BERT-mini, lamb, no accumulation", 2, _config(BERT, LAMB, 64, 1, "bf16"), 1
    yield "BERT-mini, lamb, checkpointing", 2, _config(BERT, LAMB, 64, 2, "bf16", activation_checkpointing=True), 1
    yield "BERT-mini, lamb, fp16", 2, _config(BERT, LAMB, 16, 1, "fp16"), 2
    for stage in (0, 2, 3):  # few samples: the update is the peak
        yield "BERT-mini, muon", 2, _config(BERT, MUON, 2, stage, "fp32"), 1
    yield "BERT-mini, adamw, amsgrad", 2, _config(BERT, AMSGRAD, 16, 2, "fp32"), 1
    yield "ResNet-18, sgd", 2, _config(RESNET, SGD, 16, 2, "fp32"), 1
    yield "ResNet-18, lamb", 2, _config(RESNET, LAMB, 16, 3, "bf16"), 1
    yield "BERT-mini, lamb, large", 1, _config(BERT, LAMB, 192, 0, "fp32"), 1


def _config(model: Any, optimizer: Any, micro: int, stage: int, precision: str, **engine: Any) -> dict[str, Any]:
    # DeepSpeed's default bucket of 5e8 elements would dominate the memory of models as small as these.
    # With the default initial scale, fp16 would skip these few steps and the optimizer would never create its state.
    given = {"zero_optimization": {"reduce_bucket_size": 2_000_000}, "fp16": {"initial_scale_power": 4}}
    return {
        **model, "name": "validation", "duration": "10 steps", "batch": {"global": micro, "micro": micro}, "optimizer": optimizer,
        "engine": {"stage": stage, "precision": precision, "deepspeed": given, **engine},
    }  # fmt: skip


def rows() -> Iterator[tuple[list[str], float]]:
    """(row of the table, relative error of the estimated peak) of each case."""
    from bellwether.trainer.config import validate
    from bellwether.trainer.memory import activations
    from bellwether.trainer.memory import peak as memory
    from bellwether.trainer.memory.sharding import Sharding, state_tensors
    from tests.experiments.planner.truth import data_of, train
    from tests.ranks import Ranks

    groups: dict[int, Ranks] = {}
    try:
        for name, world_size, raw, accumulation in cases():
            config, micro = validate(raw), raw["batch"]["micro"]
            profile = activations.measure(config, data_of(config), on_gpu=False)
            states = state_tensors(config, profile)
            sharding = Sharding.from_config(config, states, profile.elements, world_size=world_size, on_gpu=False)
            estimated = memory.peak(profile, sharding, world_size, micro, accumulation)
            between = memory.resident(profile, sharding, world_size)
            if "large" in name:  # in a new process, to measure its resident size
                groups.pop(world_size).close()
                # By default the C library retains a quarter more than is alive, which counts as resident.
                os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"
            if world_size not in groups:
                groups[world_size] = Ranks(world_size)
            measured = max(groups[world_size].run(train, raw, accumulation), key=lambda s: s.peak)
            error = estimated.total / measured.peak - 1
            engine = raw["engine"]
            print(name, world_size, engine["precision"], engine["stage"], f"{error:+.1%}", file=sys.stderr, flush=True)
            yield [
                name, str(world_size), engine["precision"], str(engine["stage"]), f"{micro} x {accumulation}",
                *(f"{value / _MIB:,.1f}" for value in (
                    between.parameters, measured.parameters, between.optimizer, measured.optimizer, between.total, measured.between,
                    estimated.activations, estimated.total, measured.peak,
                      )), f"{error:+.1%}", f"{measured.rss / _MIB:,.0f}" if "large" in name else "",
            ], error  # fmt: skip
    finally:
        for group in groups.values():
            group.close()


def main() -> int:
    os.environ["DS_ACCELERATOR"] = "cpu"
    heads = [
        "run", "ranks", "precision", "ZeRO", "micro", "parameters", "measured", "optimizer", "measured", "between steps",
        "measured", "activations", "peak", "measured", "error", "process",
    ]  # fmt: skip
    found = list(rows())
    worst = max(abs(error) for _, error in found)
    table = [heads, ["-" * len(head) for head in heads], *(row for row, _ in found)]
    when = (
        f"{results_page.measured()}, 2 CPU cores, DeepSpeed {version('deepspeed')}, torch {version('torch')}: "
        f"`python -m scripts.validate_planner`. MiB of the rank with the most. The largest error of the peak is {worst:.1%}."
    )
    text = "\n".join([when, "", *("| " + " | ".join(row) + " |" for row in table)])
    results_page.write(sys.argv[1] if len(sys.argv) > 1 else None, BEGIN, END, text)
    return 0 if worst <= 0.1 else 1


if __name__ == "__main__":
    sys.exit(main())
