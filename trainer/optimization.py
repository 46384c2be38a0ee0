"""The optimizer, the averaging and the learning rate schedule that the config of a phase names."""

from __future__ import annotations

from typing import Any

import torch

from bellwether import optimizers
from bellwether.optimizers import ShardedOptimizer, WarmupConstant
from bellwether.optimizers.registry import OPTIMIZERS
from bellwether.trainer.config import Config, ConfigError
from bellwether.trainer.data.sampling import fold_in
from bellwether.trainer.distributed import raised_by_all_ranks
from bellwether.trainer.phases import Phase


def make_optimizer(groups: list[dict[str, Any]], config: Config, lr: float) -> ShardedOptimizer:
    """The optimizer that a config names, for the groups of `bellwether.trainer.param_groups`.

    Raises:
        ConfigError: if its constructor refuses the options of a group, as a learning rate of 0 with `independent` decay.
    """
    options = {**config.optimizer.options(), "lr": lr}
    if "adam_lr" in options:
        options["adam_lr"] *= lr / config.optimizer.lr  # scaled with the batch as lr is
    try:
        return OPTIMIZERS[config.optimizer.name].make([{**group, **_rounding(config)} for group in groups], **options)
    except ValueError as error:
        advice = "change the keys of optimizer that this names"
        raise raised_by_all_ranks(ConfigError("optimizer", None, str(error), advice)) from error


def _rounding(config: Config) -> dict[str, Any]:
    """The options of 16-bit weights. Other seeds of a run give other random numbers."""
    if config.optimizer.stochastic_rounding:
        return {"stochastic_rounding": True, "rounding_seed": fold_in(config.seed, 0)}
    return {"kahan_sum": True} if config.optimizer.kahan_sum else {}


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
        "batch": phase.config.batch.sizes,
        "batch_rule": phase.config.scaling.rule,
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
