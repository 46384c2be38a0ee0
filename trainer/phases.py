"""The phases of a run in numbers: batch split, steps and learning rate, from a config, the world size and the size of the data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bellwether.optimizers.batch_schedule import BatchSchedule
from bellwether.optimizers.scaling import scaled_lr, scaled_warmup
from bellwether.trainer.config import Config, ConfigError, Duration, Span


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
    splits: tuple[Split, ...]  # of each segment of `batches` that begins within the phase
    batches: BatchSchedule
    epoch: int  # number of training samples of this phase
    steps: int
    first_step: int  # steps of the run before this phase
    first_sample: int  # samples of the run before this phase
    lr: float  # peak, at the first batch size
    warmup: int
    cooldown: int
    milestones: tuple[int, ...] = ()
    interval: int = 0  # of a warmup-exponential schedule
    average_from: int = 1  # the first update of the run whose weights are averaged
    average_every: int = 1  # updates

    @property
    def split(self) -> Split:
        """The split of the largest global batch, which needs the most memory."""
        return max(self.splits, key=lambda split: (split.global_batch, split.micro))

    @property
    def samples(self) -> int:
        return self.batches.samples(self.steps)

    @property
    def last_step(self) -> int:
        """The run's step count when the phase is complete."""
        return self.first_step + self.steps

    def split_at(self, step: int) -> Split:
        """The split of a step of the run."""
        of_phase = [
            segment.first_step for segment in self.batches.segments if segment.first_step < step - self.first_step
        ]
        return self.splits[max(0, len(of_phase) - 1)]

    def samples_at(self, step: int) -> int:
        """The run's samples after a step of it."""
        return self.first_sample + self.batches.samples(step - self.first_step)

    def segments(self, after: int, end: int) -> Iterator[tuple[int, int, Split]]:
        """(step before it, number of steps, split) of each part of the steps of the run after one of them that has one batch size."""
        starts = [self.first_step + segment.first_step for segment in self.batches.segments]
        for first, following, split in zip(starts, [*starts[1:], end], self.splits, strict=False):
            begin, stop = max(first, after), min(following, end)
            if begin < stop:
                yield begin, stop - begin, split

    def due(self, step: int, every: Duration | None) -> bool:
        """Whether a multiple of ``every``, counted from the start of the phase, falls within the samples of a step of the run."""
        if every is None:
            return False
        (begin, end), period = self._measured(every, step - 1, step), self._period(every)
        return end // period > begin // period

    def passed(self, since: int, step: int, every: Duration) -> bool:
        """Whether ``every`` has passed between two steps of the run."""
        begin, end = self._measured(every, since, step)
        return end - begin >= self._period(every)

    def _period(self, every: Duration) -> int:
        return max(1, every.samples(self.batches.batch(0), self.epoch))

    def _measured(self, every: Duration, *steps: int) -> list[int]:
        """Steps of the run in the samples of the phase; where ``every`` counts steps, as if all were of the first size."""
        if every.unit == "steps":
            return [(step - self.first_step) * self.batches.batch(0) for step in steps]
        return [self.batches.samples(step - self.first_step) for step in steps]


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


def splits(phases: Sequence[Config], world_size: int) -> list[tuple[Split, ...]]:
    """`split` for each batch size of each phase; errors name the phase's key."""
    keys = [f"phases[{index}].batch" if len(phases) > 1 else "batch" for index in range(len(phases))]
    return [
        tuple(split(size, c.batch.most, world_size, key, c.data.unit) for size in c.batch.all_sizes)
        for c, key in zip(phases, keys, strict=True)
    ]


def check_world_size(config: Config, processes: int, change: str) -> None:
    """Refuse another number of processes than the config requires, before they are started.

    Args:
        change: what else the user can change.
    """
    expected = config.engine.world_size
    if expected is not None and expected != processes:
        problem = f"{processes} process{'' if processes == 1 else 'es'} would be started"
        raise ConfigError("engine.world_size", expected, problem, f"correct it, or {change}")


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
    splits(phases, world_size)  # refuses all batch sizes that it cannot split
    for index, (config, epoch) in enumerate(zip(phases, epochs, strict=True)):
        key = f"phases[{index}]." if len(phases) > 1 else ""
        batches = BatchSchedule(config.batch.sizes)
        shares = tuple(
            split(segment.batch, config.batch.most, world_size, unit=config.data.unit) for segment in batches.segments
        )
        phase = _plan_phase(
            config, key, Phase(config, index, shares, batches, epoch, 0, step, sample, config.optimizer.lr, 0, 0)
        )
        planned.append(phase)
        step, sample = step + phase.steps, sample + phase.samples
    return _plan_averaging(planned)


def _plan_phase(config: Config, key: str, start: Phase) -> Phase:
    """Add length, peak learning rate, warm-up, cool-down and milestones to a phase of which batch and start are known."""
    batches, epoch, schedule, scaling = start.batches, start.epoch, config.schedule, config.scaling
    batch = batches.batch(0)
    steps = batches.steps_for(_length(config.duration, batches, epoch))
    if steps < 1:
        raise ConfigError(f"{key}duration", str(config.duration), "is less than one step", "write at least 1 steps")
    total = batches.samples(steps)
    lr, warmup = config.optimizer.lr, _span(schedule.warmup, total, batches, epoch)
    if scaling.base_batch is not None:
        lr = scaled_lr(lr, batch, scaling.base_batch, scaling.rule)
        if scaling.warmup:
            warmup = round(scaled_warmup(warmup, batch, scaling.base_batch))
    cooldown = _cooldown(schedule.cooldown, steps, batches, epoch) if schedule.kind == "trapezoid" else 0
    if warmup + cooldown > total:
        problem = (
            f"warm-up and cool-down take {warmup + cooldown:,} samples at batch {batch:,}, the phase has {total:,}"
        )
        advice = "shorten them, lengthen the phase, or lower the batch"
        raise ConfigError(f"{key}schedule.warmup", str(schedule.warmup), problem, advice)
    milestones = tuple(_span(m, total, batches, epoch) for m in schedule.milestones)
    if list(milestones) != sorted(milestones):
        written, problem = [str(m) for m in schedule.milestones], "must be in ascending order"
        raise ConfigError(f"{key}schedule.milestones", written, problem, "write the earliest first")
    interval = 0
    if schedule.interval is not None:
        if _counts_steps(schedule.interval) and not batches.is_constant:
            problem = "steps are of different length where the batch grows"
            raise ConfigError(
                f"{key}schedule.interval", str(schedule.interval), problem, "write it in samples or epochs"
            )
        interval = max(1, _span(schedule.interval, total, batches, epoch))
    begun = sum(segment.first_step < steps for segment in batches.segments)
    return replace(
        start, splits=start.splits[:begun], steps=steps, lr=lr, warmup=warmup, cooldown=cooldown,
        milestones=milestones, interval=interval,
    )  # fmt: skip


def _length(duration: Duration, batches: BatchSchedule, epoch: int) -> int:
    """A duration from the start of a phase, in samples."""
    if duration.unit != "steps" or batches.is_constant:
        return duration.samples(batches.batch(0), epoch)
    whole = int(duration.amount)
    return batches.samples(whole) + math.ceil(round((duration.amount - whole) * batches.batch(whole), 6))


def _span(span: Span, total: int, batches: BatchSchedule, epoch: int) -> int:
    """A span from the start of a phase, in samples."""
    return span.samples(total, 1, epoch) if span.duration is None else _length(span.duration, batches, epoch)


def _cooldown(span: Span, steps: int, batches: BatchSchedule, epoch: int) -> int:
    """A span up to the end of a phase, in samples."""
    total = batches.samples(steps)
    if span.duration is None or not _counts_steps(span) or batches.is_constant:
        return span.samples(total, batches.batch(0), epoch)
    before = steps - span.duration.amount
    return total - _length(Duration(before, "steps"), batches, epoch) if before >= 0 else total + 1


def _counts_steps(span: Span) -> bool:
    return span.duration is not None and span.duration.unit == "steps"


def _plan_averaging(planned: list[Phase]) -> list[Phase]:
    """Add the updates whose weights are averaged, which are those of the last phase."""
    last, averaging = planned[-1], planned[-1].config.averaging
    batches = last.batches
    first = last.first_step + batches.step(_span(averaging.start, last.samples, batches, last.epoch)) + 1
    if averaging.kind in ("swa", "ema") and first > last.last_step:
        problem = f"there is nothing to average after step {last.last_step:,}"
        raise ConfigError("averaging.start", str(averaging.start), problem, "start earlier, as in 0.75")
    if averaging.kind in ("swa", "ema") and averaging.every.unit != "steps" and not batches.is_constant:
        problem = "updates are averaged, and take different numbers of samples where the batch grows"
        raise ConfigError("averaging.every", str(averaging.every), problem, "write it in steps")
    batch = batches.batch(0)
    every = max(1, averaging.every.samples(batch, last.epoch) // batch)
    return [replace(phase, average_from=first, average_every=every) for phase in planned]


def stop_step(config: Config, phases: Sequence[Phase]) -> int:
    """The step at which the run stops: its last, or that of ``stop_after``."""
    last = phases[-1].last_step
    if config.stop_after is None:
        return last
    stop, before = config.stop_after, 0.0  # of the phases before, in the unit of `stop`
    for phase in phases:
        batches, per_unit = phase.batches, phase.epoch if stop.unit == "epochs" else 1
        remaining = stop.amount - before
        length = float(phase.steps) if stop.unit == "steps" else phase.samples / per_unit
        if remaining <= length:
            steps = remaining if stop.unit == "steps" else batches.progress(remaining * per_unit)
            return phase.first_step + math.ceil(round(steps, 6))
        before += length
    return last
