"""Bytes that a rank holds under DeepSpeed's ZeRO, moment by moment of a step: its largest moment is what must fit.

Follows DeepSpeed 0.19 as `bellwether.trainer.engine` sets it up; docs/results/planner.md compares it with real runs. Which of DeepSpeed's
engines runs depends on stage and precision, and they differ in more than what they shard:

============ ====================================== ================================================================
stage        engine                                 gradients a rank keeps until the update
============ ====================================== ================================================================
0, fp32      none                                   all, as they are made
0, 16 bits   FP16_UnfusedOptimizer                  all in 16 bits, and all again in fp32 for the update
1, bf16      BF16_Optimizer                         all in fp32, and all in bf16
1, 2         DeepSpeedZeroOptimizer                 all until they are reduced (1), or its part alone (2)
3            DeepSpeedZeroOptimizer_Stage3          its part
============ ====================================== ================================================================

Elements are counted by E (all), a rank's part is E / W with the padding that DeepSpeed adds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from itertools import accumulate
from typing import Any

from bellwether.experiments.planner.activations import Profile, Stretch
from bellwether.trainer.config import Config, ConfigError

# What DeepSpeed reduces at a time where it does not follow reduce_bucket_size: stage 0 and BF16_Optimizer.
ALLREDUCE = 500_000_000


@dataclass(frozen=True)
class Bytes:
    """What a rank holds at one moment, in bytes."""

    parameters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0  # fp32 masters and the rule's state
    buffers: float = 0.0  # buckets, and copies that live for a moment
    activations: float = 0.0
    moment: str = ""

    @property
    def total(self) -> float:
        return sum(astuple(self)[:5])


@dataclass(frozen=True)
class Sharding:
    """How the engine splits and buffers; sizes of buckets in elements."""

    stage: int
    precision: str
    states: int  # tensors of the rule for each parameter: 2 for Adam's moments
    reduce_bucket: int
    allgather_bucket: int
    prefetch: int
    persistence: int
    contiguous: bool
    overlap: bool

    @property
    def weight(self) -> int:
        """Bytes of a weight, and of a gradient as it is made and sent."""
        return 4 if self.precision == "fp32" else 2

    @property
    def master(self) -> int:
        """Bytes of masters and state for each element that a rank updates."""
        own = self.stage == 0 and self.precision == "fp32"
        return 4 * self.states + (0 if own else 4)

    @property
    def is_bf16_optimizer(self) -> bool:
        return self.stage == 1 and self.precision == "bf16"


def sharding(config: Config, states: int, elements: int, stage: int | None = None) -> Sharding:
    """What DeepSpeed makes of a config, its own defaults included.

    Args:
        states: tensors as large as the weights that the optimizer keeps.
        elements: of all parameters that are trained.
        stage: of ZeRO; None: the config's.

    Raises:
        ConfigError: if the config offloads, which this does not know.
    """
    from bellwether.trainer.distributed import import_deepspeed
    from bellwether.trainer.engine import reduce_bucket

    import_deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    given: dict[str, Any] = dict(config.engine.deepspeed.get("zero_optimization", {}))
    for key in ("offload_optimizer", "offload_param", "zenflow"):
        if given.get(key):
            problem = "moves memory to the CPU, which the planner does not know"
            raise ConfigError(f"engine.deepspeed.zero_optimization.{key}", given[key], problem, "plan without it")
    given.setdefault("reduce_bucket_size", reduce_bucket(elements))
    zero = DeepSpeedZeroConfig(**{**given, "stage": config.engine.stage if stage is None else stage})
    return Sharding(
        zero.stage, config.engine.precision, states, zero.reduce_bucket_size, zero.allgather_bucket_size,
        zero.prefetch_bucket_size, zero.param_persistence_threshold, bool(zero.contiguous_gradients), bool(zero.overlap_comm),
    )  # fmt: skip


def peak(profile: Profile, how: Sharding, world_size: int, micro: int, accumulation: int) -> Bytes:
    """The largest moment of a step, once the optimizer has its state."""
    return max(moments(profile, how, world_size, micro, accumulation), key=lambda m: m.total)


def resident(profile: Profile, how: Sharding, world_size: int) -> Bytes:
    """What stays between two steps."""
    rank = _Rank.of(profile, how, world_size)
    held = Bytes(rank.parameters, 0.0, rank.optimizer, moment="between steps")
    if how.is_bf16_optimizer:
        return replace(held, gradients=4.0 * rank.padded)
    if how.stage == 3:
        return replace(held, gradients=4.0 * rank.part, buffers=rank.bucket)
    return held


def moments(profile: Profile, how: Sharding, world_size: int, micro: int, accumulation: int) -> Iterator[Bytes]:
    """Each stretch of the two passes, the reduction of gradients and the update."""
    rank = _Rank.of(profile, how, world_size)
    again = accumulation > 1  # the last micro-batch finds the gradients of those before it
    make = {0: _whole, 1: _partial, 2: _partial, 3: _gathered}[how.stage]
    if how.is_bf16_optimizer:
        make = _bf16
    held = Bytes(rank.parameters, 0.0, rank.optimizer)
    for stretch in profile.stretches:
        active = stretch.fixed + stretch.sample * micro
        moment = "forward and backward pass" if stretch.before < profile.elements else "end of the backward pass"
        yield replace(make(held, rank, stretch, again), activations=active, moment=moment)
    yield from _ends(held, rank)


def largest_micro(
    profile: Profile, how: Sharding, world_size: int, per_rank: int, memory: float
) -> int:  # fmt: skip
    """The most samples at a time that keep a rank within ``memory`` bytes; 0 if not even one does.

    Args:
        per_rank: samples a step of a rank. Where all fit at once, no gradients wait for those of others.
    """

    def fits(micro: int) -> bool:
        return peak(profile, how, world_size, micro, math.ceil(per_rank / micro)).total <= memory

    if fits(per_rank):
        return per_rank
    low, high = 0, per_rank  # what fits, and what does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class _Rank:
    """Elements and bytes that the rank with the most of them has."""

    how: Sharding
    world_size: int
    elements: int
    padded: int  # all elements, with padding
    part: int  # a rank's, with padding
    largest_part: int  # of one param group
    touched: int  # elements of all parameters of which a rank has a piece
    slice: int  # largest piece of one parameter
    largest: int  # largest parameter
    persistent: int  # elements that stage 3 keeps whole
    groups: int

    @classmethod
    def of(cls, profile: Profile, how: Sharding, world_size: int) -> _Rank:
        groups, sizes = profile.groups, [n for group in profile.groups for n in group]
        if how.stage == 3:
            parts = [sum(math.ceil(n / world_size) for n in group) for group in groups]
            touched, piece = sum(parts), math.ceil(max(sizes) / world_size)
        elif how.stage == 0:
            parts = [sum(group) for group in groups]
            touched, piece = sum(sizes), max(sizes)
        else:
            parts = [math.ceil(sum(group) / (2 * world_size)) * 2 for group in groups]
            touched, piece = _pieces(groups, parts, world_size)
        padded = sum(parts) * (world_size if how.stage else 1)
        small = sum(n for n in sizes if n < how.persistence) if world_size > 1 else 0
        return cls(
            how, world_size, sum(sizes), padded, sum(parts), max(parts), touched, piece, max(sizes), small, len(groups)
        )

    @property
    def parameters(self) -> float:
        if self.how.stage == 3:
            return self.how.weight * float(self.part + self.persistent)
        return self.how.weight * float(self.padded)

    @property
    def optimizer(self) -> float:
        return self.how.master * float(self.part)

    @property
    def bucket(self) -> float:
        """Bytes of the buffers into which gradients are copied before they are sent."""
        wide = self.how.stage == 1 and self.how.precision != "fp32"
        size = 4 if wide else self.how.weight
        copies = 2 if self.how.overlap and self.how.stage != 3 else 1
        return float(size * self.how.reduce_bucket * copies) if self.how.contiguous else 0.0

    @property
    def kept(self) -> float:
        """Bytes of the gradients that a rank of stage 1 and 2 keeps for its update."""
        # In fp32 whole parameters of which it has a piece, else its part in a buffer of its own.
        return 4.0 * (self.touched if self.how.precision == "fp32" else self.part)

    def sent(self, stretch: Stretch) -> float:
        """Bytes of the copy that is sent while this gradient is made, where a bucket is full then."""
        bucket = self.how.reduce_bucket
        if stretch.before + stretch.made <= bucket and stretch.made:
            return 0.0
        return self.how.weight * float(min(max(bucket, stretch.made), stretch.before + stretch.made))


def _pieces(groups: list[list[int]], parts: list[int], world_size: int) -> tuple[int, int]:
    """Of the rank with the most: elements of the parameters that it has a piece of, and its largest piece."""
    touched, largest = [0] * world_size, 0
    for group, part in zip(groups, parts, strict=True):
        for end, size in zip(accumulate(group), group, strict=True):
            begin = end - size
            owners = range(begin // part, (end - 1) // part + 1)
            for rank in owners:
                touched[rank] += size
            largest = max(largest, min(size, part) if len(owners) > 1 else size)
    return max(touched), largest


def _whole(held: Bytes, rank: _Rank, stretch: Stretch, again: bool) -> Bytes:
    """Stage 0."""
    return replace(held, gradients=float(rank.how.weight * (rank.elements if again else stretch.before)))


def _bf16(held: Bytes, rank: _Rank, stretch: Stretch, again: bool) -> Bytes:
    return replace(held, gradients=4.0 * rank.padded + 2.0 * (rank.elements if again else stretch.before))


def _partial(held: Bytes, rank: _Rank, stretch: Stretch, again: bool) -> Bytes:
    """Stages 1 and 2. The bucket is made with the first gradient, what stage 2 keeps with the first full bucket."""
    # Stage 1 keeps it from one micro-batch to the next.
    buffers = rank.bucket if stretch.before or (again and rank.how.stage == 1) else 0.0
    if rank.how.stage == 1:
        wide = rank.how.weight if rank.how.precision == "fp32" else 4
        return replace(held, gradients=float(wide * (rank.elements if again else stretch.before)), buffers=buffers)
    before = rank.kept if again else 0.0
    began = stretch.before > min(rank.how.reduce_bucket, rank.elements - 1)
    now = rank.kept if began and (rank.how.precision == "fp32" or not again) else 0.0
    return replace(held, gradients=before + now, buffers=buffers + rank.sent(stretch))


def _gathered(held: Bytes, rank: _Rank, stretch: Stretch, again: bool) -> Bytes:
    """Stage 3. Parameters stay whole from where they are first needed until their gradient is made."""
    weight, large = rank.how.weight, rank.elements - rank.persistent
    whole = max(0, large - stretch.before) if rank.world_size > 1 else 0
    fetched = min(rank.how.prefetch, large) if rank.world_size > 1 and not stretch.before else 0
    return replace(
        held,
        parameters=held.parameters + float(weight * whole),
        gradients=4.0 * rank.part,
        buffers=rank.bucket + weight * fetched + rank.sent(stretch) * (1 + 1 / rank.world_size),
    )


def _ends(held: Bytes, rank: _Rank) -> Iterator[Bytes]:
    """The reduction after the last micro-batch, and the update."""
    how, elements = rank.how, float(rank.elements)
    reduced = replace(held, moment="reduction of gradients")
    updated = replace(held, moment="update")
    norm = 8.0 * rank.slice  # a piece in float64, for its norm
    if how.is_bf16_optimizer:
        gradients = 4.0 * rank.padded + 2 * elements
        together = rank.groups > 1 and rank.padded <= ALLREDUCE
        # Put together in fp32, and sent in bf16; a group alone is sent as it lies.
        copies = 6.0 * rank.padded if together else 2.0 * rank.largest_part * rank.world_size
        yield replace(reduced, gradients=gradients, buffers=copies)
        yield replace(updated, gradients=gradients)
    elif how.stage == 0:
        gradients = how.weight * elements
        yield replace(reduced, gradients=gradients, buffers=float(how.weight * min(rank.elements, ALLREDUCE)))
        yield replace(updated, gradients=gradients, buffers=0.0 if how.precision == "fp32" else 4 * elements)
    elif how.stage == 3:
        # The parameters that were kept whole are let go.
        held = replace(updated, parameters=float(how.weight * rank.part), gradients=4.0 * rank.part)
        yield replace(held, buffers=rank.bucket + 4.0 * rank.largest_part)
    else:
        if how.stage == 1:
            wide = how.weight if how.precision == "fp32" else 4
            copy = how.weight * float(min(rank.elements, max(how.reduce_bucket, rank.largest)))
            yield replace(reduced, gradients=wide * elements + rank.kept, buffers=rank.bucket + copy)
        # In fp32 a param group's gradients are put together once more.
        copy = 4.0 * rank.largest_part if how.precision == "fp32" else 0.0
        yield replace(updated, gradients=rank.kept, buffers=max(copy, norm))
