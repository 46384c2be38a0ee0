"""The plan of a phase as text for users: rows of label and value, and advice."""

from __future__ import annotations

from collections.abc import Iterator

from bellwether.optimizers.recipes import recipe
from bellwether.optimizers.scaling import scaled_lr
from bellwether.trainer import communication
from bellwether.trainer.config.schema import PATTERNS, Optimizer
from bellwether.trainer.phases import Phase, Split


def rows(phase: Phase) -> list[tuple[str, str]]:
    """The plan of a phase as rows of label and value, for users."""
    config = phase.config
    scaling, optimizer, schedule = config.scaling, config.optimizer, config.schedule
    rates = [scaled_lr(phase.lr, split.global_batch, phase.batches.batch(0), scaling.rule) for split in phase.splits]
    lr = ", ".join(dict.fromkeys(f"{rate:.3e}" for rate in rates))
    if scaling.base_batch is not None and scaling.rule != "none":
        lr += f"  ({optimizer.lr:.3e} at batch {scaling.base_batch:,}, rule {scaling.rule})"
    warmup = f"{phase.warmup:,} samples, {phase.batches.progress(phase.warmup):,.1f} steps, {phase.warmup / phase.samples:.2%}"
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
        ("processes", f"{phase.split.world_size}"),
        ("global batch", "; ".join(_batches(phase))),
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


def notes(phase: Phase) -> list[str]:
    """Advice to the user about a phase: a wasteful split, a batch that is never reached or outside of the schedule recipe's range."""
    config, batch = phase.config, phase.split.global_batch
    name = config.schedule.recipe if phase.index == 0 else None
    advice = [wasteful(split, config.batch.most) for split in phase.splits]
    advice.append(None if name is None else recipe(name).warning(batch))
    if not phase.batches.is_constant and config.scaling.rule == "none":
        advice.append("the batch grows and the learning rate does not follow: set scaling.rule and scaling.base_batch")
    advice += [
        f"batch.global: {segment.batch:,} is never reached: it begins at {segment.first_sample:,} samples, and the phase has {phase.samples:,}"
        for segment in phase.batches.segments[len(phase.splits) :]
    ]
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


def _batches(phase: Phase) -> Iterator[str]:
    """Each batch size of a phase with its split, and from where it holds."""
    for segment, split in zip(phase.batches.segments, phase.splits, strict=False):
        start = (
            f"from {segment.first_sample:,} samples, step {phase.first_step + segment.first_step + 1:,}: "
            if segment.first_step
            else ""
        )
        yield (
            f"{start}{split.global_batch:,} = {split.micro} micro x {split.accumulation} accumulation x "
            f"{split.world_size} processes"
        )


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
        f"{key.replace('_', ' ')} {', '.join(names)}"
        for key in PATTERNS
        if key != "lr_scale" and (names := getattr(optimizer, key))
    ]
    if optimizer.layer_decay is not None:
        extras.append(f"layer decay {optimizer.layer_decay:g}")
    extras += [f"lr x {factor:g} for {pattern}" for pattern, factor in optimizer.lr_scale.items()]
    parts = [optimizer.name, f"weight decay {optimizer.weight_decay:g}{form}", f"clip {optimizer.clip:g}", *extras]
    return ", ".join(parts)
