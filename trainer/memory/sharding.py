"""How DeepSpeed's ZeRO splits and buffers a model: the part of a rank, in elements."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from torch import nn

from bellwether.optimizers import ShardedOptimizer
from bellwether.trainer import communication
from bellwether.trainer.config import Config, ConfigError
from bellwether.trainer.config.schema import PATTERNS
from bellwether.trainer.memory.activations import Profile, Segment
from bellwether.trainer.memory.update import GroupUpdate, UpdateCosts
from bellwether.trainer.optimization import make_optimizer
from bellwether.trainer.param_groups import param_groups


@dataclass(frozen=True)
class Sharding:
    """The settings of ZeRO that decide memory and traffic. Bucket sizes are in elements."""

    stage: int
    precision: str
    states: float  # elements of optimizer state for each of the weights: 2 for Adam's moments
    reduce_bucket: int
    allgather_bucket: int
    prefetch: int
    persistence: int
    contiguous: bool
    overlap: bool
    bf16_masters: bool = False  # the optimizer updates bf16 weights, and there are no fp32 ones
    rounding: str = ""  # stochastic_rounding or kahan_sum, of bf16 weights
    costs: UpdateCosts = field(default_factory=UpdateCosts)

    @classmethod
    def from_config(
        cls,
        config: Config,
        states: float,
        elements: int,
        stage: int | None = None,
        *,
        world_size: int = 1,
        on_gpu: bool = True,
    ) -> Sharding:
        """What DeepSpeed makes of a config, including its own defaults.

        Args:
            states: elements of optimizer state for each element of the weights.
            elements: of all trained parameters.
            stage: of ZeRO; None: the config's.
            on_gpu: the processes have GPUs, and their network; else gloo.

        Raises:
            ConfigError: if the config offloads, which the planner does not support.
        """
        from bellwether.trainer.libraries import import_deepspeed

        import_deepspeed()
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        zero_config: dict[str, Any] = dict(config.engine.deepspeed.get("zero_optimization", {}))
        for key in ("offload_optimizer", "offload_param", "zenflow"):
            if zero_config.get(key):
                key_path = f"engine.deepspeed.zero_optimization.{key}"
                raise ConfigError(
                    key_path, zero_config[key], "the planner does not support offloading", "plan without it"
                )
        stage, weight_bytes = (
            config.engine.stage if stage is None else stage,
            4 if config.engine.precision == "fp32" else 2,
        )
        chosen = communication.choose(stage, weight_bytes, elements, world_size, on_gpu)
        ours = {"reduce_bucket_size": chosen.bucket, "overlap_comm": chosen.overlap}
        zero = DeepSpeedZeroConfig(**{**ours, **zero_config, "stage": stage})
        rounding = next((key for key in ("stochastic_rounding", "kahan_sum") if getattr(config.optimizer, key)), "")
        return cls(
            zero.stage, config.engine.precision, states, zero.reduce_bucket_size, zero.allgather_bucket_size,
            zero.prefetch_bucket_size, zero.param_persistence_threshold, bool(zero.contiguous_gradients), bool(zero.overlap_comm),
            config.engine.has_bf16_masters and zero.stage > 0, rounding, UpdateCosts.of(_stand_in(config)),
        )  # fmt: skip

    @property
    def weight_bytes(self) -> int:
        """Bytes of a weight, and of a gradient as it is computed and sent."""
        return 4 if self.precision == "fp32" else 2

    @property
    def optimizer_bytes(self) -> float:
        """Bytes of master weights and optimizer state, which is fp32 also beside bf16 weights, for each element of a rank."""
        if self.bf16_masters:  # DeepSpeed copies the rank's part also where it has the same type
            return 4 * self.states + (4 if self.rounding == "kahan_sum" else 2)
        updates_model_weights = self.stage == 0 and self.precision == "fp32"
        return 4 * self.states + (0 if updates_model_weights else 4)

    @property
    def accumulation_bytes(self) -> int:
        """Bytes of an element of the gradients that a rank keeps. Stage 1 accumulates in the type of the master weights."""
        return 2 if self.bf16_masters and self.stage == 1 else 4

    @property
    def same_type(self) -> bool:
        """Whether weights, gradients and master weights have one type, so that DeepSpeed accumulates in place."""
        return self.precision == "fp32" or (self.bf16_masters and self.stage == 1)

    @property
    def is_bf16_optimizer(self) -> bool:
        """Whether DeepSpeed uses its BF16_Optimizer."""
        return self.stage == 1 and self.precision == "bf16" and not self.bf16_masters


@dataclass(frozen=True)
class RankLayout:
    """The part of the model on the rank that holds the most. Counts are elements unless they are named bytes."""

    sharding: Sharding
    world_size: int
    elements: int  # trained
    padded: int  # trained, with DeepSpeed's padding
    part: int  # of the rank, with padding
    parts: list[int]  # of the rank, in each param group
    touched: int  # of all parameters of which the rank has a slice
    largest_slice: int  # of one parameter
    largest_parameter: int
    persistent: int  # of the parameters that stage 3 does not partition
    shapes: list[list[tuple[int, ...]]]  # of the parameters, in each param group
    matrices: list[bool]  # of each param group, whether it is one of matrices for Muon
    frozen: int = 0  # of the rank, not trained
    frozen_partitioned: int = 0  # of the model, not trained, that stage 3 partitions

    @classmethod
    def of(cls, profile: Profile, sharding: Sharding, world_size: int) -> RankLayout:
        groups, sizes = profile.groups, [n for group in profile.groups for n in group]
        if sharding.stage == 3:
            parts = [sum(math.ceil(n / world_size) for n in group) for group in groups]
            touched, largest_slice = sum(parts), math.ceil(max(sizes) / world_size)
        elif sharding.stage == 0:
            parts = [sum(group) for group in groups]
            touched, largest_slice = sum(sizes), max(sizes)
        else:
            parts = [math.ceil(sum(group) / (2 * world_size)) * 2 for group in groups]
            touched, largest_slice = _slices(groups, parts, world_size)
        padded = sum(parts) * (world_size if sharding.stage else 1)
        persistent = sum(n for n in sizes if n < sharding.persistence) if world_size > 1 else 0
        frozen, frozen_partitioned = sum(profile.frozen), 0
        if sharding.stage == 3 and world_size > 1:
            frozen_partitioned = sum(n for n in profile.frozen if n >= sharding.persistence)
            frozen += sum(math.ceil(n / world_size) for n in profile.frozen) - frozen_partitioned
        return cls(
            sharding, world_size, sum(sizes), padded, sum(parts), parts, touched, largest_slice, max(sizes), persistent,
            profile.shapes or [[(n,) for n in group] for group in groups], profile.matrices, frozen, frozen_partitioned,
        )  # fmt: skip

    @property
    def parameter_bytes(self) -> float:
        elements = self.part + self.persistent if self.sharding.stage == 3 else self.padded
        return self.sharding.weight_bytes * float(elements) + self.frozen_bytes

    @property
    def frozen_bytes(self) -> float:
        """Bytes of the weights that are not trained: no gradients, master weights or optimizer state."""
        return self.sharding.weight_bytes * float(self.frozen)

    @property
    def optimizer_bytes(self) -> float:
        """Bytes of master weights and optimizer state."""
        return self.sharding.optimizer_bytes * float(self.part)

    @property
    def bucket_bytes(self) -> float:
        """Bytes of the buffers into which gradients are copied before they are sent."""
        sharding = self.sharding
        in_fp32 = sharding.stage == 1 and not sharding.same_type
        size = 4 if in_fp32 else sharding.weight_bytes
        copies = 2 if sharding.overlap and sharding.stage != 3 else 1
        return float(size * sharding.reduce_bucket * copies) if sharding.contiguous else 0.0

    @property
    def kept_gradient_bytes(self) -> float:
        """Bytes of the gradients that a rank keeps for its update under stages 1 and 2."""
        # In one type, the whole of each parameter of which it has a slice; else its part, in a separate buffer.
        return float(self.sharding.accumulation_bytes * (self.touched if self.sharding.same_type else self.part))

    @property
    def largest_part(self) -> int:
        """Elements of the rank in one param group."""
        return max(self.parts)

    @property
    def update_bytes(self) -> float:
        """Bytes that the update adds to gradients, weights and state."""
        sharding = self.sharding
        if sharding.stage and not sharding.is_bf16_optimizer:  # one group after the other
            return max(self._copies(g) for g in range(len(self.parts)))
        together: list[float] = [0.0]
        for are_matrices in (True, False):
            chosen = [g for g, matrices in enumerate(self.matrices) if matrices == are_matrices]
            if chosen:
                together.append(self._group_update(chosen).bytes)
        return max(together)

    def _copies(self, g: int) -> float:
        """Of one group, with the copies that DeepSpeed makes of its gradients."""
        sharding, part, extra = self.sharding, self.parts[g], self._group_update([g]).bytes
        if not sharding.bf16_masters:
            has_copy = sharding.stage == 3 or sharding.same_type
            return (sharding.accumulation_bytes * part if has_copy else 0) + extra
        # Gradients that were accumulated in fp32, but at stage 1, are copied in bf16; stage 2 frees the others then.
        copying, copied = {1: (2, 2), 2: (2, -2), 3: (6, 2)}[sharding.stage]
        return max(float(copying * part), copied * part + extra)

    def _group_update(self, chosen: list[int]) -> GroupUpdate:
        sharding, shapes = self.sharding, [shape for g in chosen for shape in self.shapes[g]]
        is_flat = sharding.stage > 0
        numels = [math.prod(shape) for shape in shapes]
        part, largest = sum(self.parts[g] for g in chosen), max(numels)
        largest = math.ceil(largest / self.world_size) if sharding.stage == 3 else min(largest, part)
        return GroupUpdate(
            sharding.costs, shapes, part, [self.parts[g] for g in chosen] if is_flat else numels, largest,
            self.world_size if is_flat else 1,
            all(self.matrices[g] for g in chosen), sharding.rounding if sharding.bf16_masters else "", sharding.bf16_masters,
        )  # fmt: skip

    def send_bytes(self, segment: Segment) -> float:
        """Bytes of the copy that is sent during a segment, if its gradient fills a bucket."""
        bucket = self.sharding.reduce_bucket
        if segment.before + segment.gradient <= bucket and segment.gradient:
            return 0.0
        elements = min(max(bucket, segment.gradient), segment.before + segment.gradient)
        return self.sharding.weight_bytes * float(elements)


def _slices(groups: list[list[int]], parts: list[int], world_size: int) -> tuple[int, int]:
    """(elements of the parameters that the rank with the most has slices of, elements of the largest slice)."""
    touched, largest = [0] * world_size, 0
    for group, part in zip(groups, parts, strict=True):
        for end, size in zip(accumulate(group), group, strict=True):
            begin = end - size
            owners = range(begin // part, (end - 1) // part + 1)
            for rank in owners:
                touched[rank] += size
            largest = max(largest, min(size, part) if len(owners) > 1 else size)
    return max(touched), largest


def state_tensors(config: Config, profile: Profile) -> float:
    """Elements that the optimizer, averaging and trajectory measurement keep for each element of the weights."""
    optimizer = _stand_in(config)
    counts = [optimizer.state_tensors({**optimizer.param_groups[0], "muon": muon}) for muon in profile.matrices]
    elements = sum(count * sum(group) for count, group in zip(counts, profile.groups, strict=True))
    whole = (optimizer.whole_state(shape, optimizer.param_groups[0]) for group in profile.shapes for shape in group)
    elements += sum(math.prod(size) for sizes in whole for size in sizes.values())
    trajectory = 3 if config.trajectory.every is not None else 0
    return elements / profile.elements + (config.averaging.kind != "none") + trajectory


def _stand_in(config: Config) -> ShardedOptimizer:
    """The config's optimizer for a model of one layer."""
    defaults = type(config.optimizer).model_fields
    without_patterns = config.optimizer.model_copy(update={key: defaults[key].default for key in PATTERNS})
    return make_optimizer(param_groups(nn.Linear(1, 1), without_patterns), config, config.optimizer.lr)
