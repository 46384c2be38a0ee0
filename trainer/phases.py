"""The phases of a run in numbers: batch split, steps and learning rate, from a config, the world size and the size of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bellwether.optimizers.recipes import recipe
from bellwether.optimizers.scaling import scaled_lr, scaled_warmup
from bellwether.trainer import communication
from bellwether.trainer.config import Config, ConfigError, Duration
from bellwether.trainer.config.schema import Optimizer


@dataclass(frozen=True)
class Split:
    """How a global batch is split: it is exactly ``micro * accumulation * world_size`` samples."""

    global_batch: int
    micro: int
    accumulation: int
    world_size: int


@dataclass(frozen=True)
class Phase:
    """One phase in numbers. All lengths are in samples unless stated otherwise."""

    config: Config
    index: int
    split: Split
    epoch: int  # number of training samples of this phase
    steps: int
    first_step: int  # steps of the run before this phase
    first_sample: int  # samples of the run before this phase
    lr: float
    warmup: int
    cooldown: int
    milestones: tuple[int, ...] = ()
    interval: int = 0  # of a warmup-exponential schedule
    average_from: int = 1  # the first update of the run whose weights are averaged
    average_every: int = 1  # updates

    @property
    def samples(self) -> int:
        return self.steps * self.split.global_batch

    @property
    def last_step(self) -> int:
        """The run's step count when the phase is complete."""
        return self.first_step + self.steps

    def due(self, step: int, every: Duration | None) -> bool:
        """Whether a multiple of ``every``, counted from the start of the phase, falls within the samples of a step of the run."""
        if every is None:
            return False
        batch = self.split.global_batch
        period, end = max(1, every.samples(batch, self.epoch)), (step - self.first_step) * batch
        return end // period > (end - batch) // period


def split(global_batch: int, most: int, world_size: int, key: str = "batch", unit: int = 1) -> Split:
    """Split a global batch over ``world_size`` ranks, with the largest micro-batch of at most ``most`` that divides it.

    Args:
        unit: the micro-batch is a multiple of it, see `bellwether.trainer.config.schema.data.DataConfig.unit`.

    Raises:
        ConfigError: if the ranks cannot have equal shares, naming the nearest global batches that work.
    """
    whole = world_size * unit
    if global_batch % whole:
        below = global_batch // whole * whole
        near = [b for b in (below, below + whole) if b > 0]
        shares = "equally" if unit == 1 else f"in multiples of {unit} samples, which are mixed with each other,"
        raise ConfigError(
            f"{key}.global",
            global_batch,
            f"cannot be divided {shares} among {world_size} processes",
            f"the nearest that can: {' and '.join(map(str, near))}",
        )
    if most < unit:
        problem = f"is less than the {unit} samples that are mixed with each other"
        raise ConfigError(f"{key}.micro", most, problem, f"write at least {unit}")
    per_rank = global_batch // world_size
    micro = next(m for m in range(min(most, per_rank), 0, -1) if per_rank % m == 0 and m % unit == 0)
    return Split(global_batch, micro, per_rank // micro, world_size)


def splits(phases: Sequence[Config], world_size: int) -> list[Split]:
    """`split` for each phase; errors name the phase's key."""
    keys = [f"phases[{index}].batch" if len(phases) > 1 else "batch" for index in range(len(phases))]
    return [
        split(c.batch.global_, c.batch.most, world_size, key, c.data.unit) for c, key in zip(phases, keys, strict=True)
    ]


def notes(phase: Phase) -> list[str]:
    """Advice to the user about a phase: a wasteful split, and a batch outside of the schedule recipe's range."""
    config, batch = phase.config, phase.split.global_batch
    name = config.schedule.recipe if phase.index == 0 else None
    advice = (wasteful(phase.split, config.batch.most), None if name is None else recipe(name).warning(batch))
    return [note for note in advice if note is not None]


def wasteful(split: Split, most: int) -> str | None:
    """Advice where the micro-batch of a split is less than half of what memory allows; None elsewhere."""
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
        epochs: number of training samples of each phase's data.

    Raises:
        ConfigError: if a batch cannot be split, a duration is zero, or warm-up, cool-down, milestones or averaging do not fit.
    """
    planned: list[Phase] = []
    step = sample = 0
    for index, (config, epoch, shares) in enumerate(zip(phases, epochs, splits(phases, world_size), strict=True)):
        key = f"phases[{index}]." if len(phases) > 1 else ""
        phase = _plan_phase(
            config, key, Phase(config, index, shares, epoch, 0, step, sample, config.optimizer.lr, 0, 0)
        )
        planned.append(phase)
        step, sample = step + phase.steps, sample + phase.samples
    return _plan_averaging(planned)


def _plan_phase(config: Config, key: str, start: Phase) -> Phase:
    """Add length, peak learning rate, warm-up, cool-down and milestones to a phase of which batch and start are known."""
    batch, epoch, schedule, scaling = start.split.global_batch, start.epoch, config.schedule, config.scaling
    steps = math.ceil(config.duration.samples(batch, epoch) / batch)
    if steps < 1:
        raise ConfigError(f"{key}duration", str(config.duration), "is less than one step", "write at least 1 steps")
    total = steps * batch
    lr, warmup = config.optimizer.lr, schedule.warmup.samples(total, batch, epoch)
    if scaling.base_batch is not None:
        lr = scaled_lr(lr, batch, scaling.base_batch, scaling.rule)
        if scaling.warmup:
            warmup = round(scaled_warmup(warmup, batch, scaling.base_batch))
    cooldown = schedule.cooldown.samples(total, batch, epoch) if schedule.kind == "trapezoid" else 0
    if warmup + cooldown > total:
        problem = (
            f"warm-up and cool-down take {warmup + cooldown:,} samples at batch {batch:,}, the phase has {total:,}"
        )
        advice = "shorten them, lengthen the phase, or lower the batch"
        raise ConfigError(f"{key}schedule.warmup", str(schedule.warmup), problem, advice)
    milestones = tuple(m.samples(total, batch, epoch) for m in schedule.milestones)
    if list(milestones) != sorted(milestones):
        written, problem = [str(m) for m in schedule.milestones], "must be in ascending order"
        raise ConfigError(f"{key}schedule.milestones", written, problem, "write the earliest first")
    interval = 0 if schedule.interval is None else max(1, schedule.interval.samples(total, batch, epoch))
    return replace(
        start, steps=steps, lr=lr, warmup=warmup, cooldown=cooldown, milestones=milestones, interval=interval
    )


def _plan_averaging(planned: list[Phase]) -> list[Phase]:
    """Add the updates whose weights are averaged, which are those of the last phase."""
    last, averaging = planned[-1], planned[-1].config.averaging
    batch = last.split.global_batch
    first = last.first_step + averaging.start.samples(last.samples, batch, last.epoch) // batch + 1
    if averaging.kind in ("swa", "ema") and first > last.last_step:
        problem = f"there is nothing to average after step {last.last_step:,}"
        raise ConfigError("averaging.start", str(averaging.start), problem, "start earlier, as in 0.75")
    every = max(1, averaging.every.samples(batch, last.epoch) // batch)
    return [replace(phase, average_from=first, average_every=every) for phase in planned]


def rows(phase: Phase) -> list[tuple[str, str]]:
    """The plan of a phase as rows of label and value, for users."""
    config, s = phase.config, phase.split
    scaling, optimizer, schedule = config.scaling, config.optimizer, config.schedule
    lr = f"{phase.lr:.3e}"
    if scaling.base_batch is not None and scaling.rule != "none":
        lr += f"  ({optimizer.lr:.3e} at batch {scaling.base_batch:,}, rule {scaling.rule})"
    warmup = f"{phase.warmup:,} samples, {phase.warmup / s.global_batch:,.1f} steps, {phase.warmup / phase.samples:.2%}"
    decay = schedule.kind if not schedule.final else f"{schedule.kind} to {schedule.final:g} of the peak"
    if schedule.kind == "exponential":
        decay = f"exponential from {schedule.start:g} of the peak to {schedule.final:g}"
    if schedule.kind == "warmup-exponential":
        decay += f", x {schedule.drop:g} every {phase.interval:,} samples"
    if schedule.decay_from == "start":
        decay += ", on a curve from the start of the phase"
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
        *config.data.plan(),
        *config.model.plan(),
        *([] if config.loss.is_plain else [("loss", str(config.loss))]),
        ("optimizer", _optimizer(optimizer)),
        *([("averaging", _averaging(phase))] if config.averaging.kind != "none" else []),
        ("peak lr", lr),
        ("warm-up", warmup),
        ("schedule", decay),
        ("engine", config.engine.label),
        ("gradients", communication.description(phase)),
    ]


def stop_step(config: Config, phases: Sequence[Phase]) -> int:
    """The step at which the run stops: its last, or that of ``stop_after``."""
    last = phases[-1].last_step
    if config.stop_after is None:
        return last
    remaining, unit = config.stop_after.amount, config.stop_after.unit
    for phase in phases:
        batch = phase.split.global_batch
        step_length = {"steps": 1.0, "samples": float(batch), "epochs": batch / phase.epoch}[unit]
        if remaining <= phase.steps * step_length:
            return phase.first_step + math.ceil(round(remaining / step_length, 6))
        remaining -= phase.steps * step_length
    return last


def _averaging(phase: Phase) -> str:
    averaging = phase.config.averaging
    if averaging.kind == "lookahead":
        return f"lookahead, {averaging.k} steps, alpha {averaging.alpha:g}"
    often = "each step" if phase.average_every == 1 else f"every {phase.average_every:,} steps"
    return f"{averaging.kind} from step {phase.average_from:,} on, {often}"


_SHOWN = ("nesterov", "amsgrad", "trust_ratio", "trust_bounds", "prenormalize", "stochastic_rounding", "kahan_sum")


def _optimizer(optimizer: Optimizer) -> str:
    form = f" ({optimizer.weight_decay_mode})" if optimizer.weight_decay_mode else ""
    extras = [key.replace("_", " ") for key in _SHOWN if getattr(optimizer, key)]
    extras += [
        f"{key} {', '.join(names)}" for key in ("include", "exclude", "freeze") if (names := getattr(optimizer, key))
    ]
    if optimizer.layer_decay is not None:
        extras.append(f"layer decay {optimizer.layer_decay:g}")
    extras += [f"lr x {factor:g} for {pattern}" for pattern, factor in optimizer.lr_scale.items()]
    parts = [optimizer.name, f"weight decay {optimizer.weight_decay:g}{form}", f"clip {optimizer.clip:g}", *extras]
    return ", ".join(parts)
