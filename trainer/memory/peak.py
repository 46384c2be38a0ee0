"""Bytes that a rank holds under DeepSpeed's ZeRO at each moment of a step. The peak is what must fit.

Follows DeepSpeed 0.19 as `bellwether.trainer.engine` configures it; docs/results/planner.md compares it with real runs. Stage
and precision select one of DeepSpeed's engines, which differ in more than what they shard:

============ ====================================== ================================================================
stage        engine                                 gradients that a rank keeps until the update
============ ====================================== ================================================================
0, fp32      none                                   all, as they are computed
0, 16 bits   FP16_UnfusedOptimizer                  all in 16 bits, and all again in fp32 for the update
1, bf16      BF16_Optimizer                         all in fp32, and all in bf16
1, 2         DeepSpeedZeroOptimizer                 all until they are reduced (1), or its part only (2)
3            DeepSpeedZeroOptimizer_Stage3          its part
============ ====================================== ================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace

from bellwether.trainer.memory.activations import Profile, Segment
from bellwether.trainer.memory.sharding import RankLayout, Sharding

# Elements that stage 0 and BF16_Optimizer, which ignore reduce_bucket_size, reduce at a time.
ALLREDUCE_BUCKET = 500_000_000


@dataclass(frozen=True)
class Bytes:
    """The memory of a rank at one moment, in bytes, by its use."""

    parameters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0  # fp32 master weights and optimizer state
    buffers: float = 0.0  # buckets and short-lived copies
    activations: float = 0.0
    moment: str = ""
    frozen: float = 0.0  # the part of `parameters` that is not trained

    @property
    def total(self) -> float:
        return sum(astuple(self)[:5])


def peak(profile: Profile, sharding: Sharding, world_size: int, micro: int, accumulation: int) -> Bytes:
    """The moment of a step with the most bytes, once the optimizer has its state."""
    return max(moments(profile, sharding, world_size, micro, accumulation), key=lambda m: m.total)


def resident(profile: Profile, sharding: Sharding, world_size: int) -> Bytes:
    """The memory of a rank between two steps."""
    rank = RankLayout.of(profile, sharding, world_size)
    rank_bytes = Bytes(rank.parameter_bytes, 0.0, rank.optimizer_bytes, moment="between steps")
    if sharding.is_bf16_optimizer:
        return replace(rank_bytes, gradients=4.0 * rank.padded)
    if sharding.stage == 3:
        return replace(rank_bytes, gradients=4.0 * rank.part, buffers=rank.bucket_bytes)
    return rank_bytes


def moments(profile: Profile, sharding: Sharding, world_size: int, micro: int, accumulation: int) -> Iterator[Bytes]:
    """Each segment of the forward and backward pass, the reduction of the gradients, and the update."""
    rank = RankLayout.of(profile, sharding, world_size)
    accumulated = accumulation > 1  # the last micro-batch finds the gradients of earlier ones
    during_pass = {0: _stage_0, 1: _stage_1_and_2, 2: _stage_1_and_2, 3: _stage_3}[sharding.stage]
    if sharding.is_bf16_optimizer:
        during_pass = _bf16_optimizer
    rank_bytes = Bytes(rank.parameter_bytes, 0.0, rank.optimizer_bytes, frozen=rank.frozen_bytes)
    for segment in profile.segments:
        moment = "forward and backward pass" if segment.before < profile.elements else "end of the backward pass"
        activations = segment.fixed + segment.per_sample * micro
        yield replace(during_pass(rank_bytes, rank, segment, accumulated), activations=activations, moment=moment)
    yield from _after_passes(rank_bytes, rank)


def largest_micro(profile: Profile, sharding: Sharding, world_size: int, per_rank: int, memory: float) -> int:
    """The largest micro-batch with which a rank stays within ``memory`` bytes; 0 if not even one sample fits.

    Args:
        per_rank: samples per step and rank. If all of them fit at once, no gradients are accumulated.
    """

    def fits(micro: int) -> bool:
        return peak(profile, sharding, world_size, micro, math.ceil(per_rank / micro)).total <= memory

    if fits(per_rank):
        return per_rank
    low, high = 0, per_rank  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


# Gradients and buffers during a segment of the passes. `accumulated`: gradients of earlier micro-batches exist.


def _stage_0(rank_bytes: Bytes, rank: RankLayout, segment: Segment, accumulated: bool) -> Bytes:
    elements = rank.elements if accumulated else segment.before
    return replace(rank_bytes, gradients=float(rank.sharding.weight_bytes * elements))


def _bf16_optimizer(rank_bytes: Bytes, rank: RankLayout, segment: Segment, accumulated: bool) -> Bytes:
    elements = rank.elements if accumulated else segment.before
    return replace(rank_bytes, gradients=4.0 * rank.padded + 2.0 * elements)


def _stage_1_and_2(rank_bytes: Bytes, rank: RankLayout, segment: Segment, accumulated: bool) -> Bytes:
    """DeepSpeed allocates the bucket with the first gradient, and the kept part (stage 2) with the first full bucket."""
    sharding = rank.sharding
    # Stage 1 keeps the bucket from one micro-batch to the next.
    buffers = rank.bucket_bytes if segment.before or (accumulated and sharding.stage == 1) else 0.0
    if sharding.stage == 1:
        size = sharding.accumulation_bytes
        elements = rank.elements if accumulated else segment.before
        return replace(rank_bytes, gradients=float(size * elements), buffers=buffers)
    earlier = rank.kept_gradient_bytes if accumulated else 0.0
    has_reduced = segment.before > min(sharding.reduce_bucket, rank.elements - 1)
    allocates = has_reduced and (sharding.same_type or not accumulated)
    now = rank.kept_gradient_bytes if allocates else 0.0
    return replace(rank_bytes, gradients=earlier + now, buffers=buffers + rank.send_bytes(segment))


def _stage_3(rank_bytes: Bytes, rank: RankLayout, segment: Segment, accumulated: bool) -> Bytes:
    """Gathered parameters stay whole from their first use until their gradient is computed, and frozen ones that long at most."""
    size, partitioned = rank.sharding.weight_bytes, rank.elements - rank.persistent
    whole = max(0, partitioned - segment.before) + rank.frozen_partitioned if rank.world_size > 1 else 0
    prefetched = min(rank.sharding.prefetch, partitioned) if rank.world_size > 1 and not segment.before else 0
    return replace(
        rank_bytes,
        parameters=rank_bytes.parameters + float(size * whole),
        gradients=4.0 * rank.part,
        buffers=rank.bucket_bytes + size * prefetched + rank.send_bytes(segment) * (1 + 1 / rank.world_size),
    )


def _after_passes(rank_bytes: Bytes, rank: RankLayout) -> Iterator[Bytes]:
    """The reduction after the last micro-batch, and the update."""
    if rank.sharding.is_bf16_optimizer:
        return _after_passes_bf16_optimizer(rank_bytes, rank)
    by_stage = (_after_passes_stage_0, _after_passes_stage_1_and_2, _after_passes_stage_1_and_2, _after_passes_stage_3)
    return by_stage[rank.sharding.stage](rank_bytes, rank)


def _after_passes_bf16_optimizer(rank_bytes: Bytes, rank: RankLayout) -> Iterator[Bytes]:
    gradients = 4.0 * rank.padded + 2 * float(rank.elements)
    # Several groups are concatenated in fp32 and sent in bf16; a single group is sent in place.
    concatenated = len(rank.parts) > 1 and rank.padded <= ALLREDUCE_BUCKET
    copies = 6.0 * rank.padded if concatenated else 2.0 * rank.largest_part * rank.world_size
    yield replace(rank_bytes, gradients=gradients, buffers=copies, moment="reduction of gradients")
    yield replace(rank_bytes, gradients=gradients, buffers=rank.update_bytes, moment="update")


def _after_passes_stage_0(rank_bytes: Bytes, rank: RankLayout) -> Iterator[Bytes]:
    size = rank.sharding.weight_bytes
    gradients, bucket = size * float(rank.elements), float(size * min(rank.elements, ALLREDUCE_BUCKET))
    in_fp32 = 0.0 if rank.sharding.precision == "fp32" else 4 * float(rank.elements)
    yield replace(rank_bytes, gradients=gradients, buffers=bucket, moment="reduction of gradients")
    yield replace(rank_bytes, gradients=gradients, buffers=in_fp32 + rank.update_bytes, moment="update")


def _after_passes_stage_1_and_2(rank_bytes: Bytes, rank: RankLayout) -> Iterator[Bytes]:
    sharding = rank.sharding
    if sharding.stage == 1:
        size = sharding.accumulation_bytes
        gradients = size * float(rank.elements) + rank.kept_gradient_bytes
        largest = max(sharding.reduce_bucket, rank.largest_parameter)
        copy = sharding.weight_bytes * float(min(rank.elements, largest))
        buffers = rank.bucket_bytes + copy
        yield replace(rank_bytes, gradients=gradients, buffers=buffers, moment="reduction of gradients")
    # In one type the gradients of a param group are concatenated once more; norms are computed on a float64 copy of a slice.
    buffers = max(rank.update_bytes, 8.0 * rank.largest_slice)
    yield replace(rank_bytes, gradients=rank.kept_gradient_bytes, buffers=buffers, moment="update")


def _after_passes_stage_3(rank_bytes: Bytes, rank: RankLayout) -> Iterator[Bytes]:
    # Parameters that are kept whole otherwise are released.
    parameters = float(rank.sharding.weight_bytes * rank.part) + rank.frozen_bytes
    buffers = rank.bucket_bytes + rank.update_bytes
    yield replace(rank_bytes, parameters=parameters, gradients=4.0 * rank.part, buffers=buffers, moment="update")
