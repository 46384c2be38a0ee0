"""The plan of a phase on given machines: memory, the time of a step, what all of it takes, and how it would scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from bellwether.experiments.planner.activations import Profile, measure
from bellwether.experiments.planner.critical_batch import Critical
from bellwether.experiments.planner.gpus import Gpu
from bellwether.experiments.planner.memory import Bytes, Sharding, largest_micro, peak, resident, sharding
from bellwether.experiments.planner.model_info import Subject
from bellwether.experiments.planner.network import Collective, Network, collectives
from bellwether.optimizers.kernels.tensor_list import STATE
from bellwether.optimizers.recipes import Recipe, recipe
from bellwether.trainer.config import Config, ConfigError, Duration
from bellwether.trainer.config.schema import Batch
from bellwether.trainer.engine import make_optimizer
from bellwether.trainer.phases import Phase, Split, plan, split

MOST_GPUS = 4096
# Share of the peak that a training step reaches: guesses by kind of model, for want of a measurement (--mfu, --throughput).
MFU = {"bert": 0.35, "resnet": 0.2, "cifar-resnet": 0.05, "wide-resnet": 0.2}
_REACHED = 0.8  # share of a nominal bandwidth, of memory and links
# Bytes that an update moves for each element: docs/results/optimizers-cpu.md.
_MOVED = {True: 40, False: 28}


@dataclass(frozen=True)
class Machines:
    """Where the run would be."""

    gpu: Gpu
    nodes: int
    per_node: int
    headroom: float = 0.1  # share of the memory that is left to CUDA, NCCL, workspaces and fragmentation
    mfu: float | None = None
    throughput: float | None = None  # samples a second and GPU, measured; instead of flops and mfu

    @property
    def world_size(self) -> int:
        return self.nodes * self.per_node

    @property
    def memory(self) -> float:
        """Bytes of a GPU that the run may take."""
        return self.gpu.memory * 2**30 * (1 - self.headroom)

    @property
    def network(self) -> Network:
        return Network(self.per_node, _REACHED * 1e9 * self.gpu.link, _REACHED * 1e9 * self.gpu.network / 8)


@dataclass(frozen=True)
class StagePlan:
    """A rank's memory and network at one ZeRO stage."""

    stage: int
    peak: Bytes
    fits: bool
    largest_micro: int
    between: float  # bytes held between steps
    traffic: list[Collective]
    step: StepTime


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, one part after the other."""

    compute: float
    network: float  # as far as no computation hides it
    update: float
    sent: float  # bytes that leave a rank

    @property
    def total(self) -> float:
        return self.compute + self.network + self.update


@dataclass(frozen=True)
class Row:
    """One line of a scaling table."""

    gpus: int
    batch: int
    micro: int
    accumulation: int
    step: StepTime
    samples_per_s: float
    efficiency: float  # throughput a GPU, by that of the first row
    hours: float  # for the samples that this batch needs
    lr: float | None = None
    warmup: float | None = None  # share of the phase
    worth: float | None = None  # 1 / (1 + B / B_crit)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PhasePlan:
    """All that is said of one phase."""

    phase: Phase
    subject: Subject
    profile: Profile
    how: Sharding
    machines: Machines
    stages: list[StagePlan]
    best: Split | None  # with the largest micro-batch that fits
    strong: list[Row]
    weak: list[Row]

    @property
    def chosen(self) -> StagePlan:
        """At the stage of the config."""
        return self.stages[self.how.stage]

    @property
    def step(self) -> StepTime:
        return self.chosen.step

    @property
    def hours(self) -> float:
        return self.phase.steps * self.step.total / 3600

    @property
    def energy(self) -> float:
        """Of the GPUs, in kWh."""
        return self.hours * self.machines.world_size * self.machines.gpu.watts / 1000


def phase_plan(phase: Phase, subject: Subject, machines: Machines, critical: Critical | None) -> PhasePlan:
    """Measure a phase's model, and work out the rest.

    Raises:
        ConfigError: if the GPU cannot compute in the config's precision, or DeepSpeed's keys are not known here.
    """
    config = phase.config
    precision = config.engine.precision
    if not machines.gpu.peak(precision):
        raise ConfigError("engine.precision", precision, f"{machines.gpu.name} has none", "write fp16 or fp32")
    profile = measure(config, subject.data)
    count = states(config)
    shares = phase.split
    per_rank = shares.global_batch // shares.world_size
    stages = []
    for stage in range(4):
        how = sharding(config, count, profile.elements, stage)
        highest = peak(profile, how, shares.world_size, shares.micro, shares.accumulation)
        most = largest_micro(profile, how, shares.world_size, per_rank, machines.memory)
        between = resident(profile, how, shares.world_size).total
        stages.append(
            StagePlan(
                stage, highest, highest.total <= machines.memory, most, between, collectives(profile, how, shares.accumulation),
                step_time(profile, how, machines, config, shares),
            )
        )  # fmt: skip
    how = sharding(config, count, profile.elements)
    most = stages[how.stage].largest_micro
    best = split(shares.global_batch, most, shares.world_size) if most else None
    found = PhasePlan(phase, subject, profile, how, machines, stages, best, [], [])
    sizes = doublings(shares.world_size)
    found.strong.extend(_strong(found, sizes))
    found.weak.extend(_weak(found, sizes, critical))
    return found


def states(config: Config) -> int:
    """Tensors as large as the weights that the update rule, averages and diagnosis keep."""
    wanted = config.optimizer
    swats = wanted.name == "swats"  # AdamW, and a copy of the weights while it looks at its own step
    rule = wanted.model_copy(update={"name": "adamw", "tolerance": None}) if swats else wanted
    optimizer = make_optimizer(nn.Linear(1, 1), rule, wanted.lr)
    kept = len(STATE[optimizer.rule(optimizer.param_groups[0], 1).formula])  # type: ignore[attr-defined]
    walked = 3 if config.trajectory.every is not None else 0
    return kept + swats + (config.averaging.kind != "none") + walked


def step_time(profile: Profile, how: Sharding, machines: Machines, config: Config, shares: Split) -> StepTime:
    """Computation, then what of the network it does not hide, then the update."""
    per_rank = shares.global_batch / shares.world_size
    if machines.throughput is not None:
        compute = per_rank / machines.throughput
    else:
        reached = (machines.mfu or MFU[config.model.kind]) * machines.gpu.peak(config.engine.precision)
        compute = per_rank * profile.flops / reached
    traffic = collectives(profile, how, shares.accumulation)
    times = [(c.hidden, c.seconds(machines.network, shares.world_size)) for c in traffic]
    beside = sum(seconds for hidden, seconds in times if hidden)
    alone = sum(seconds for hidden, seconds in times if not hidden)
    part = profile.elements / (shares.world_size if how.stage else 1)
    trusted = config.optimizer.name in ("lamb", "lars") or bool(config.optimizer.trust_ratio)
    update = part * _MOVED[trusted] / (_REACHED * 1e9 * machines.gpu.bandwidth)
    sent = sum(c.sent(shares.world_size) for c in traffic)
    return StepTime(compute, alone + max(0.0, beside - compute), update, sent)


def doublings(first: int) -> list[int]:
    """Numbers of GPUs: the first, twice as many, and so on up to 4,096."""
    return [first * 2**n for n in range(max(1, int(math.log2(max(1, MOST_GPUS // first))) + 1))]


def _strong(found: PhasePlan, sizes: list[int]) -> list[Row]:
    """More GPUs for the same batch, as long as each has a sample and all have equally many."""
    batch = found.phase.split.global_batch
    return [_row(found, gpus, batch) for gpus in sizes if batch % gpus == 0]


def _weak(found: PhasePlan, sizes: list[int], critical: Critical | None) -> list[Row]:
    """As many samples for each GPU as at first: the batch grows, and learning rate and warm-up with it."""
    first = found.phase.split
    return [_row(found, gpus, first.global_batch * gpus // first.world_size, critical, grown=True) for gpus in sizes]


def _row(found: PhasePlan, gpus: int, batch: int, critical: Critical | None = None, grown: bool = False) -> Row:
    phase, old = found.phase, found.phase.split
    shares = split(batch, phase.config.batch.micro, gpus)
    times = step_time(found.profile, found.how, found.machines, phase.config, shares)
    pace = batch / times.total
    first = old.global_batch / found.step.total / old.world_size
    samples = float(phase.samples)
    lr = warmup = worth = None
    notes: tuple[str, ...] = ()
    if grown:
        lr, warmup, notes = _recipe_at(found, batch)
        if critical is not None:
            worth = critical.efficiency(batch)
            samples *= critical.efficiency(old.global_batch) / worth
    return Row(
        gpus, batch, shares.micro, shares.accumulation, times, pace, pace / gpus / first, samples / pace / 3600, lr, warmup,
        worth, notes,
    )  # fmt: skip


def _recipe_at(found: PhasePlan, batch: int) -> tuple[float | None, float | None, tuple[str, ...]]:
    """Peak lr and share of warm-up that the config's recipe or rule gives at another batch; None: neither says."""
    phase, config = found.phase, found.phase.config
    if batch == phase.split.global_batch:
        return phase.lr, phase.warmup / phase.samples, ()
    name = config.schedule.recipe
    if name is not None:
        return _published_at(recipe(name), phase, batch)
    if config.scaling.base_batch is None or config.scaling.rule == "none":
        return None, None, ()
    changed = {
        "batch": Batch(**{"global": batch, "micro": config.batch.micro}),
        "duration": Duration(phase.samples, "samples"),
    }
    try:
        (other,) = plan([config.model_copy(update=changed)], 1, [phase.epoch])
    except ConfigError:
        return None, None, (f"at batch {batch:,} the warm-up would be longer than the phase",)
    return other.lr, other.warmup / other.samples, ()


def _published_at(chosen: Recipe, phase: Phase, batch: int) -> tuple[float | None, float | None, tuple[str, ...]]:
    # A recipe goes by the batch of its first phase.
    settings = chosen.at(phase.split.global_batch)
    index = min(phase.index, len(settings) - 1)
    scale = settings[0].batch / settings[index].batch
    first = round(batch * scale)
    at = chosen.at(first)[index]
    warmup = at.warmup_fraction
    if warmup is None and at.warmup_epochs is not None:
        warmup = at.warmup_epochs * phase.epoch / phase.samples
    warning = chosen.warning(first)
    return at.lr, warmup, () if warning is None else (warning,)
