"""The optimizer, the averaging and the learning rate schedule that the config of a phase names."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bellwether import optimizers
from bellwether.optimizers import ShardedOptimizer, WarmupConstant
from bellwether.optimizers.registry import OPTIMIZERS
from bellwether.trainer.config.schema import Optimizer
from bellwether.trainer.phases import Phase


def make_optimizer(task: nn.Module, optimizer_config: Optimizer, lr: float) -> ShardedOptimizer:
    """The optimizer that a config names, with a model's two param groups."""
    entry = OPTIMIZERS[optimizer_config.name]
    options = {**optimizer_config.options(), "lr": lr}
    if "adam_lr" in options:
        options["adam_lr"] *= lr / optimizer_config.lr  # scaled with the batch as lr is
    return entry.make(optimizers.groups(task, **entry.grouping), **options)


def with_averaging(optimizer: ShardedOptimizer, phase: Phase) -> ShardedOptimizer:
    """Wrap the optimizer in the averaging that the config asks for."""
    average = phase.config.averaging
    if average.kind == "lookahead":
        return optimizers.Lookahead(optimizer, average.k, average.alpha)
    if average.kind == "none":
        return optimizer
    return optimizers.WeightAverage(
        optimizer, average.kind, start=phase.average_from, every=phase.average_every, decay=average.decay
    )


def make_schedule(optimizer: torch.optim.Optimizer, phase: Phase) -> WarmupConstant:
    """The learning rate schedule that the config names."""
    schedule_config = phase.config.schedule
    shared: dict[str, Any] = {
        "batch": phase.split.global_batch,
        "total": phase.samples,
        "warmup": phase.warmup,
        "start": schedule_config.start,
        "final": schedule_config.final,
        "warmup_power": schedule_config.warmup_power,
        "decay_from": schedule_config.decay_from,
        "momentum": schedule_config.momentum,
        "scale_decay": schedule_config.scale_decay,
    }
    if schedule_config.kind == "trapezoid":
        return optimizers.Trapezoid(optimizer, cooldown=phase.cooldown, **shared)
    if schedule_config.kind == "step":
        return optimizers.WarmupStep(optimizer, milestones=phase.milestones, drop=schedule_config.drop, **shared)
    if schedule_config.kind == "warmup-exponential":
        return optimizers.WarmupExponential(optimizer, interval=phase.interval, drop=schedule_config.drop, **shared)
    if schedule_config.kind == "polynomial":
        return optimizers.WarmupPolynomial(optimizer, power=schedule_config.power, **shared)
    kinds: dict[str, type[WarmupConstant]] = {
        "exponential": optimizers.Exponential,
        "constant": WarmupConstant,
        "linear": optimizers.WarmupLinear,
        "cosine": optimizers.WarmupCosine,
    }
    return kinds[schedule_config.kind](optimizer, **shared)
