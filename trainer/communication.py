"""How gradients are reduced over the ranks: how many at a time, whether while others are still computed, and in which type.

DeepSpeed reduces when a bucket is full. A bucket as large as the model is full with the last gradient; small ones travel while the
backward pass goes on. This costs two buffers instead of one, and with DeepSpeed 0.19.8 one wait for the device after each backward pass
that reduces (`independent_gradient_partition_epilogue`), so it is chosen where the network takes longer than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bellwether.trainer.phases import Phase

MOST = 500_000_000  # elements of a bucket: DeepSpeed's own default
PARTS = 8  # buckets of a model: the first is on its way when an eighth of the gradients are ready
WAIT = 1e-3  # seconds that a wait for the device costs, until the host has launched enough work again
ONE_MACHINE = 8  # processes; more are taken to be on several machines

# Bytes per second and process, and the least elements of a bucket, below which a collective's latency counts: gloo, the GPUs of a
# machine (PCIe or better), GPUs of several machines.
_GLOO, _LINKS, _NETWORK = (1e9, 2**18), (100e9, 2**20), (25e9, 2**22)


@dataclass(frozen=True)
class Reduction:
    """Elements that DeepSpeed's stages 1 to 3 reduce at a time, and whether while other gradients are computed."""

    bucket: int
    overlap: bool


def choose(stage: int, weight_bytes: int, elements: int, world_size: int, on_gpu: bool = True) -> Reduction:
    """The reduction of a model's gradients.

    >>> choose(2, 2, 335_000_000, 128), choose(2, 2, 4_400_000, 8)
    (Reduction(bucket=41875000, overlap=True), Reduction(bucket=4400000, overlap=False))

    Args:
        stage: of ZeRO. Stage 3 overlaps by itself.
        weight_bytes: of an element as it is sent.
        elements: of all trained parameters. DeepSpeed allocates a bucket whether or not a model fills it.
    """
    speed, least = (_LINKS if world_size <= ONE_MACHINE else _NETWORK) if on_gpu else _GLOO
    whole, part = min(MOST, elements), min(MOST, max(least, elements // PARTS))
    takes_long = 2 * weight_bytes * elements / speed > WAIT
    if stage in (1, 2, 3) and world_size > 1 and part < elements and takes_long:
        return Reduction(part, True)
    return Reduction(whole, stage == 3)


def description(phase: Phase) -> str:
    """When and in which type the gradients of a phase are reduced, for its plan."""
    engine, split = phase.config.engine, phase.split
    if split.world_size == 1:
        return "not reduced: there is one process"
    kind = str(engine.deepspeed.get("communication_data_type") or engine.precision)
    how = "reduce-scattered" if engine.stage == 3 else "all-reduced"
    often = "once an update"
    if engine.stage >= 2 and split.accumulation > 1:
        often = f"after each of {split.accumulation:,} micro-batches" + (
            " (stage 1: once)" if engine.stage == 2 else ""
        )
    return f"{how} in {kind}, {often}"
