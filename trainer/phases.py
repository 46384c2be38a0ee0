"""From a config, a world size and the size of the data: what each rank does at each step, and how fast it learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bellwether.optimizers.recipes import recipe
from bellwether.optimizers.scaling import scaled_lr, scaled_warmup
from bellwether.trainer.config import Config, ConfigError, Duration
from bellwether.trainer.config.schema import Optimizer


@dataclass(frozen=True)
class Split:
    """How a global batch is reached: ``micro * accumulation * world_size``, exactly."""

    global_batch: int
    micro: int
    accumulation: int
    world_size: int


@dataclass(frozen=True)
class Phase:
    """One phase, in numbers. All lengths are in samples unless they say otherwise."""

    config: Config
    index: int
    split: Split
    epoch: int  # training rows of this phase
    steps: int
    first_step: int  # of the run
    first_sample: int  # of the run
    lr: float
    warmup: int
    cooldown: int
    milestones: tuple[int, ...] = ()
    average_from: int = 1  # the first update of the run whose weights are taken into an average
    average_every: int = 1  # updates

    @property
    def samples(self) -> int:
        return self.steps * self.split.global_batch

    @property
    def last_step(self) -> int:
        """The run's step count when the phase is complete."""
        return self.first_step + self.steps

    def due(self, step: int, every: Duration | None) -> bool:
        """Whether a multiple of ``every``, counted from the phase's beginning, lies in the samples of a step of the run."""
        if every is None:
            return False
        batch = self.split.global_batch
        period, end = max(1, every.samples(batch, self.epoch)), (step - self.first_step) * batch
        return end // period > (end - batch) // period


def split(global_batch: int, most: int, world_size: int, key: str = "batch") -> Split:
    """The largest micro-batch, at most ``most``, with which ``world_size`` ranks make up the global batch exactly.

    Raises:
        ConfigError: naming the nearest global batches that work.
    """
    if global_batch % world_size:
        below = global_batch // world_size * world_size
        near = [b for b in (below, below + world_size) if b > 0]
        raise ConfigError(
            f"{key}.global",
            global_batch,
            f"cannot be shared by {world_size} processes alike",
            f"the nearest that can: {' and '.join(map(str, near))}",
        )
    per_rank = global_batch // world_size
    micro = next(m for m in range(min(most, per_rank), 0, -1) if per_rank % m == 0)
    return Split(global_batch, micro, per_rank // micro, world_size)


def splits(phases: Sequence[Config], world_size: int) -> list[Split]:
    """`split` for each phase, with its keys in the errors."""
    keys = [f"phases[{index}].batch" if len(phases) > 1 else "batch" for index in range(len(phases))]
    return [split(c.batch.global_, c.batch.micro, world_size, key) for c, key in zip(phases, keys, strict=True)]


def notes(phase: Phase) -> list[str]:
    """What a person should know of a phase, beyond its numbers."""
    config, batch = phase.config, phase.split.global_batch
    name = config.schedule.recipe if phase.index == 0 else None
    said = (wasteful(phase.split, config.batch.micro), None if name is None else recipe(name).warning(batch))
    return [note for note in said if note is not None]


def wasteful(split: Split, most: int) -> str | None:
    """A word of advice where the solved micro-batch is far below what memory would allow."""
    best = min(most, split.global_batch // split.world_size)
    if split.micro * 2 > best:
        return None
    unit = best * split.world_size
    below = split.global_batch // unit * unit
    near = " or ".join(str(b) for b in (below, below + unit) if b > 0)
    return (
        f"batch.global: {split.global_batch} needs micro-batches of {split.micro} where batch.micro allows {best}; "
        f"{near} would run at {best}"
    )


def plan(phases: Sequence[Config], world_size: int, epochs: Sequence[int]) -> list[Phase]:
    """The phases of a run in numbers.

    Args:
        phases: a config for each, from `bellwether.trainer.config.phases`.
        world_size: number of processes.
        epochs: training rows of each phase's data.
    """
    planned: list[Phase] = []
    step = sample = 0
    for index, (config, epoch, shares) in enumerate(zip(phases, epochs, splits(phases, world_size), strict=True)):
        key = f"phases[{index}]." if len(phases) > 1 else ""
        batch = shares.global_batch
        steps = math.ceil(config.duration.samples(batch, epoch) / batch)
        if steps < 1:
            raise ConfigError(f"{key}duration", str(config.duration), "is no training at all", "write at least 1 steps")
        total = steps * batch
        lr, warmup = config.optimizer.lr, config.schedule.warmup.samples(total, batch, epoch)
        scaling = config.scaling
        if scaling.base_batch is not None:
            lr = scaled_lr(lr, batch, scaling.base_batch, scaling.rule)
            if scaling.warmup:
                warmup = round(scaled_warmup(warmup, batch, scaling.base_batch))
        cooldown = config.schedule.cooldown.samples(total, batch, epoch) if config.schedule.kind == "trapezoid" else 0
        if warmup + cooldown > total:
            raise ConfigError(
                f"{key}schedule.warmup",
                str(config.schedule.warmup),
                f"warm-up and cool-down take {warmup + cooldown:,} samples at batch {batch:,}, the phase has {total:,}",
                "shorten them, lengthen the phase, or lower the batch",
            )
        milestones = tuple(m.samples(total, batch, epoch) for m in config.schedule.milestones)
        if list(milestones) != sorted(milestones):
            written = [str(m) for m in config.schedule.milestones]
            raise ConfigError(f"{key}schedule.milestones", written, "must rise", "write the earliest first")
        planned.append(Phase(config, index, shares, epoch, steps, step, sample, lr, warmup, cooldown, milestones))
        step += steps
        sample += total
    last, wanted = planned[-1], planned[-1].config.averaging
    batch = last.split.global_batch
    begin = last.first_step + wanted.start.samples(last.samples, batch, last.epoch) // batch + 1
    if wanted.kind in ("swa", "ema") and begin > last.last_step:
        problem = f"nothing is left to average after step {last.last_step:,}"
        raise ConfigError("averaging.start", str(wanted.start), problem, "begin earlier, as in 0.75")
    every = max(1, wanted.every.samples(batch, last.epoch) // batch)
    return [replace(phase, average_from=begin, average_every=every) for phase in planned]


def rows(phase: Phase) -> list[tuple[str, str]]:
    """The plan of a phase as a table of label and value, for people."""
    config, s = phase.config, phase.split
    scaling, optimizer, schedule = config.scaling, config.optimizer, config.schedule
    lr = f"{phase.lr:.3e}"
    if scaling.base_batch is not None and scaling.rule != "none":
        lr += f"  ({optimizer.lr:.3e} at batch {scaling.base_batch:,}, rule {scaling.rule})"
    warmup = f"{phase.warmup:,} samples, {phase.warmup / s.global_batch:,.1f} steps, {phase.warmup / phase.samples:.2%}"
    decay = schedule.kind if not schedule.final else f"{schedule.kind} to {schedule.final:g} of the peak"
    if schedule.kind == "exponential":
        decay = f"exponential from {schedule.start:g} of the peak to {schedule.final:g}"
    if schedule.recipe is not None:
        decay += f", as in {schedule.recipe}"
    if phase.cooldown:
        decay += f", falling over the last {phase.cooldown:,} samples"
    return [
        ("processes", f"{s.world_size}"),
        (
            "global batch",
            f"{s.global_batch:,} = {s.micro} micro x {s.accumulation} accumulation x {s.world_size} processes",
        ),
        (
            "length",
            f"{phase.steps:,} steps, {phase.samples:,} samples, {phase.samples / phase.epoch:,.2f} epochs of {phase.epoch:,}",
        ),
        ("optimizer", _optimizer(optimizer)),
        *([("averaging", _averaging(phase))] if config.averaging.kind != "none" else []),
        ("peak lr", lr),
        ("warm-up", warmup),
        ("schedule", decay),
        ("engine", f"ZeRO {config.engine.stage}, {config.engine.precision}"),
    ]


def stop_step(config: Config, phases: Sequence[Phase]) -> int:
    """The step of the run at which to stop: its last, or where ``stop_after`` says."""
    last = phases[-1].last_step
    if config.stop_after is None:
        return last
    left, unit = config.stop_after.amount, config.stop_after.unit
    for phase in phases:
        # A phase's length, and that of a step in it, in the unit that the config counts in.
        step = {
            "steps": 1.0,
            "samples": float(phase.split.global_batch),
            "epochs": phase.split.global_batch / phase.epoch,
        }[unit]
        if left <= phase.steps * step:
            return phase.first_step + math.ceil(round(left / step, 6))
        left -= phase.steps * step
    return last


def _averaging(phase: Phase) -> str:
    wanted = phase.config.averaging
    if wanted.kind == "lookahead":
        return f"lookahead, {wanted.k} steps, alpha {wanted.alpha:g}"
    often = "each step" if phase.average_every == 1 else f"every {phase.average_every:,} steps"
    return f"{wanted.kind} from step {phase.average_from:,} on, {often}"


def _optimizer(optimizer: Optimizer) -> str:
    form = f" ({optimizer.weight_decay_mode})" if optimizer.weight_decay_mode else ""
    extras = [
        key.replace("_", " ")
        for key in ("nesterov", "amsgrad", "trust_ratio", "trust_bounds", "prenormalize")
        if getattr(optimizer, key)
    ]
    parts = [optimizer.name, f"weight decay {optimizer.weight_decay:g}{form}", f"clip {optimizer.clip:g}", *extras]
    return ", ".join(parts)
