"""How a phase would run on more GPUs: with the same global batch, and with one that grows with the GPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bellwether.experiments.planner.critical_batch import CriticalBatch
from bellwether.experiments.planner.step_time import Machines, StepTime, step_time
from bellwether.optimizers.recipes import Recipe, recipe
from bellwether.optimizers.scaling import scaled_lr
from bellwether.trainer.config import ConfigError, Duration
from bellwether.trainer.config.schema import Batch
from bellwether.trainer.memory.activations import Profile
from bellwether.trainer.memory.sharding import Sharding
from bellwether.trainer.phases import Phase, plan, split

MAX_GPUS = 4096


@dataclass(frozen=True)
class Row:
    """One line of a scaling table."""

    gpus: int
    batch: int
    micro: int
    accumulation: int
    step: StepTime
    samples_per_s: float
    efficiency: float  # throughput per GPU relative to the first row
    hours: float  # for the samples that this batch size needs
    hours_low: float  # ends of the 90 % interval, from that of the critical batch size
    hours_high: float
    lr: float | None = None
    warmup: float | None = None  # share of the phase
    worth: float | None = None  # of a sample, relative to one of a small batch
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scaling:
    """Extrapolates the plan of a phase to more GPUs.

    Args:
        step: of the phase on its own machines.
    """

    phase: Phase
    profile: Profile
    sharding: Sharding
    machines: Machines
    step: StepTime

    def strong(self) -> list[Row]:
        """More GPUs for the same global batch, as long as it divides evenly."""
        own_split, sizes = self.phase.split, [split.global_batch for split in self.phase.splits]
        unit, every = self.phase.config.data.unit, doublings(own_split.world_size)
        counts = [gpus for gpus in every if all(size % (gpus * unit) == 0 for size in sizes)]
        return [self._row(gpus, own_split.global_batch) for gpus in counts]

    def hours(self, gpus: int) -> float:
        """Hours of the phase on so many GPUs, at its own batch sizes."""
        config, seconds = self.phase.config, 0.0
        for _, steps, own in self.phase.segments(self.phase.first_step, self.phase.last_step):
            shares = split(own.global_batch, config.batch.micro, gpus, unit=config.data.unit)
            seconds += steps * step_time(self.profile, self.sharding, self.machines, config, shares).total
        return seconds / 3600

    def weak(self, critical: CriticalBatch | None) -> list[Row]:
        """The same samples per GPU: the global batch grows with the GPUs, and learning rate and warm-up with it.

        One row where it also grows during the phase.
        """
        own_split = self.phase.split
        rows = []
        for gpus in doublings(own_split.world_size)[: None if self.phase.batches.is_constant else 1]:
            batch = own_split.global_batch * gpus // own_split.world_size
            lr, warmup, notes = _schedule_at(self.phase, batch)
            rows.append(self._row(gpus, batch, critical, lr, warmup, notes))
        return rows

    def _row(
        self,
        gpus: int,
        batch: int,
        critical: CriticalBatch | None = None,
        lr: float | None = None,
        warmup: float | None = None,
        notes: tuple[str, ...] = (),
    ) -> Row:
        own_split = self.phase.split
        config = self.phase.config
        shares = split(batch, config.batch.most, gpus, unit=config.data.unit)
        times = step_time(self.profile, self.sharding, self.machines, self.phase.config, shares)
        throughput = batch / times.total
        own_throughput_per_gpu = own_split.global_batch / self.step.total / own_split.world_size
        hours, worth, more = self.phase.samples / throughput / 3600, None, (1.0, 1.0, 1.0)
        if not self.phase.batches.is_constant:
            hours = self.hours(gpus)
        if critical is not None:
            worth = critical.efficiency(batch)
            more = critical.more_samples(batch, own_split.global_batch)
        return Row(
            gpus, batch, shares.micro, shares.accumulation, times, throughput, throughput / gpus / own_throughput_per_gpu,
            hours * more[0], hours * more[1], hours * more[2], lr, warmup, worth, notes,
        )  # fmt: skip


def doublings(first: int) -> list[int]:
    """Numbers of GPUs: the first, twice as many, and so on up to `MAX_GPUS`."""
    return [first * 2**n for n in range(max(1, int(math.log2(max(1, MAX_GPUS // first))) + 1))]


def _schedule_at(phase: Phase, batch: int) -> tuple[float | None, float | None, tuple[str, ...]]:
    """(peak lr, warm-up share, notes) at another batch size, by the config's recipe or scaling rule; None without one."""
    config = phase.config
    if batch == phase.split.global_batch:
        return scaled_lr(phase.lr, batch, phase.batches.batch(0), config.scaling.rule), phase.warmup / phase.samples, ()
    if config.schedule.recipe is not None:
        return _recipe_at(recipe(config.schedule.recipe), phase, batch)
    if config.scaling.base_batch is None or config.scaling.rule == "none":
        return None, None, ()
    changed = {
        "batch": Batch(**{"global": batch, "micro": config.batch.micro}),
        "duration": Duration(phase.samples, "samples"),
    }
    try:
        (scaled,) = plan([config.model_copy(update=changed)], 1, [phase.epoch])
    except ConfigError:
        return None, None, (f"at batch {batch:,} the warm-up would be longer than the phase",)
    return scaled.lr, scaled.warmup / scaled.samples, ()


def _recipe_at(chosen: Recipe, phase: Phase, batch: int) -> tuple[float | None, float | None, tuple[str, ...]]:
    # A recipe is looked up by the batch size of its first phase.
    settings = chosen.at(phase.split.global_batch)
    index = min(phase.index, len(settings) - 1)
    first_batch = round(batch * settings[0].batch / settings[index].batch)
    at = chosen.at(first_batch)[index]
    warmup = at.warmup_fraction
    if warmup is None and at.warmup_epochs is not None:
        warmup = at.warmup_epochs * phase.epoch / phase.samples
    warning = chosen.warning(first_batch)
    return at.lr, warmup, () if warning is None else (warning,)
