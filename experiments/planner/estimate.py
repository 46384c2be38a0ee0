"""The plan of a phase on given machines: memory, step time, total time and energy, and scaling to more GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from bellwether.experiments.planner.critical_batch import CriticalBatch
from bellwether.experiments.planner.model_info import ModelInfo
from bellwether.experiments.planner.network import Collective, collectives
from bellwether.experiments.planner.scaling import Row, Scaling
from bellwether.experiments.planner.step_time import Machines, StepTime, step_time
from bellwether.trainer.config import ConfigError
from bellwether.trainer.memory.activations import Profile, measure
from bellwether.trainer.memory.largest import profile_for
from bellwether.trainer.memory.peak import Bytes, largest_micro, peak, resident
from bellwether.trainer.memory.sharding import Sharding, state_tensors
from bellwether.trainer.phases import Phase, Split, split


@dataclass(frozen=True)
class StagePlan:
    """A rank's memory and network traffic at one ZeRO stage."""

    stage: int
    peak: Bytes
    fits: bool
    largest_micro: int
    between: float  # bytes held between steps
    traffic: list[Collective]
    step: StepTime


@dataclass(frozen=True)
class PhasePlan:
    """The plan of one phase."""

    phase: Phase
    info: ModelInfo
    profile: Profile
    sharding: Sharding
    machines: Machines
    stages: list[StagePlan]
    hours: float
    best: Split | None  # with the largest micro-batch that fits; None: not one sample fits
    strong: list[Row]
    weak: list[Row]

    @property
    def chosen(self) -> StagePlan:
        """The plan at the config's ZeRO stage."""
        return self.stages[self.sharding.stage]

    @property
    def step(self) -> StepTime:
        return self.chosen.step

    @property
    def checkpoint_copy(self) -> float:
        """Bytes of host memory in which a rank keeps the copy of a checkpoint while it is written."""
        if not self.phase.config.checkpoint.async_save:
            return 0.0
        weight = 2.0 if self.sharding.bf16_masters else 4.0
        frozen = sum(self.profile.frozen) * float(self.sharding.weight_bytes)  # rank 0 saves them
        return self.profile.elements * (weight + 4.0 * self.sharding.states) / self.machines.world_size + frozen

    @property
    def energy(self) -> float:
        """Energy of the GPUs, in kWh."""
        return self.hours * self.machines.world_size * self.machines.gpu.watts / 1000


def phase_plan(phase: Phase, info: ModelInfo, machines: Machines, critical: CriticalBatch | None) -> PhasePlan:
    """Measure the model of a phase and estimate the rest.

    Raises:
        ConfigError: if the GPU does not support the config's precision, or the config offloads.
    """
    config = phase.config
    precision = config.engine.precision
    if not machines.gpu.peak(precision):
        raise ConfigError(
            "engine.precision", precision, f"{machines.gpu.name} does not support it", "write fp16 or fp32"
        )
    profile = measure(config, info.data)
    states = state_tensors(config, profile)

    def sharding_of(stage: int) -> Sharding:
        return Sharding.from_config(config, states, profile.elements, stage, world_size=machines.world_size)

    # Of a larger micro-batch, where that of the config would not tell how much memory it takes.
    micro, per_rank = phase.split.micro, phase.split.global_batch // phase.split.world_size
    most = largest_micro(profile, sharding_of(config.engine.stage), machines.world_size, per_rank, machines.memory)
    large = profile_for(config, info.data, max(micro, most), profile, micro)
    stages = [_stage_plan(profile, large, sharding_of(stage), machines, phase) for stage in range(4)]
    sharding = sharding_of(config.engine.stage)
    most = stages[sharding.stage].largest_micro
    unit = config.data.unit
    best = split(phase.split.global_batch, most, phase.split.world_size, unit=unit) if most >= unit else None
    scaling = Scaling(phase, profile, sharding, machines, stages[sharding.stage].step)
    return PhasePlan(
        phase, info, profile, sharding, machines, stages, scaling.hours(phase.split.world_size), best, scaling.strong(),
        scaling.weak(critical),
    )  # fmt: skip


def _stage_plan(profile: Profile, large: Profile, sharding: Sharding, machines: Machines, phase: Phase) -> StagePlan:
    batch = phase.split
    highest = peak(profile, sharding, batch.world_size, batch.micro, batch.accumulation)
    per_rank = batch.global_batch // batch.world_size
    return StagePlan(
        sharding.stage,
        highest,
        highest.total <= machines.memory,
        largest_micro(large, sharding, batch.world_size, per_rank, machines.memory),
        resident(profile, sharding, batch.world_size).total,
        collectives(profile, sharding, batch.accumulation, batch.world_size),
        step_time(profile, sharding, machines, phase.config, batch),
    )
