"""The engine: DeepSpeed's, with one of our optimizers and one of our schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import optimizers
from optimizers import Composed, WarmupConstant
from trainer.config import ConfigError
from trainer.distributed import World, import_deepspeed
from trainer.plan import Phase

# What Bellwether solves itself; a second opinion in engine.deepspeed would win silently.
_OURS = {
    "train_batch_size": "batch.global",
    "train_micro_batch_size_per_gpu": "batch.micro",
    "gradient_accumulation_steps": "batch.global and batch.micro",
    "gradient_clipping": "optimizer.clip",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "zero_optimization.stage": "engine.stage",
    "bf16.enabled": "engine.precision",
    "fp16.enabled": "engine.precision",
}


@dataclass
class Engine:
    """A model under training: call it, `backward`, `step`."""

    deepspeed: Any
    optimizer: Composed
    schedule: WarmupConstant

    @property
    def task(self) -> nn.Module:
        return self.deepspeed.module

    def grad_norm(self) -> float | None:
        """Global gradient norm of the last step, before clipping; None where DeepSpeed does not compute it."""
        norm = self.deepspeed.get_global_grad_norm()
        return None if norm is None else float(norm)

    def destroy(self) -> None:
        self.deepspeed.destroy()


def build(task: nn.Module, phase: Phase, world: World) -> Engine:
    """Wrap a model for one phase. Collective."""
    deepspeed = import_deepspeed()
    optimizer = _optimizer(task, phase)
    schedule = _schedule(optimizer, phase)
    engine, *_ = deepspeed.initialize(model=task.to(world.device), optimizer=optimizer, config=deepspeed_config(phase))
    return Engine(engine, optimizers.attach(engine), schedule)


def deepspeed_config(phase: Phase) -> dict[str, Any]:
    """DeepSpeed's config for a phase, `engine.deepspeed` laid over ours.

    Raises:
        ConfigError: if that sets a key which has its own place in our config.
    """
    engine = phase.config.engine
    config: dict[str, Any] = {
        "train_batch_size": phase.split.global_batch,
        "train_micro_batch_size_per_gpu": phase.split.micro,
        "gradient_accumulation_steps": phase.split.accumulation,
        # DeepSpeed 0.19 clips at 1.0 where this is left out.
        "gradient_clipping": phase.config.optimizer.clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": engine.stage},
        "bf16": {"enabled": engine.precision == "bf16"},
        "fp16": {"enabled": engine.precision == "fp16"},
        "steps_per_print": 2**62,
    }
    if engine.precision != "fp32" and engine.stage:
        # Without ZeRO, DeepSpeed can only accumulate in the model's own precision.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    for key, place in _OURS.items():
        section, _, inner = key.partition(".")
        given = engine.deepspeed.get(section)
        if section in engine.deepspeed and (not inner or (isinstance(given, dict) and inner in given)):
            raise ConfigError(f"engine.deepspeed.{key}", given, "has its own place", f"set {place}")
    for key, value in engine.deepspeed.items():
        ours = config.get(key)
        config[key] = {**ours, **value} if isinstance(ours, dict) and isinstance(value, dict) else value
    return config


def _optimizer(task: nn.Module, phase: Phase) -> Composed:
    wanted = phase.config.optimizer
    make = {"lamb": optimizers.Lamb, "adamw": optimizers.AdamW, "radam": optimizers.RAdam}[wanted.name]
    keywords: dict[str, Any] = {"lr": phase.lr, "betas": wanted.betas, "weight_decay": wanted.weight_decay}
    if wanted.eps is not None:
        keywords["eps"] = wanted.eps
    return make(optimizers.groups(task), **keywords)


def _schedule(optimizer: torch.optim.Optimizer, phase: Phase) -> WarmupConstant:
    wanted = phase.config.schedule
    shared: dict[str, Any] = {
        "batch": phase.split.global_batch,
        "total": phase.samples,
        "warmup": phase.warmup,
        "final": wanted.final,
    }
    if wanted.kind == "trapezoid":
        return optimizers.Trapezoid(optimizer, cooldown=phase.cooldown, **shared)
    if wanted.kind == "polynomial":
        return optimizers.WarmupPolynomial(optimizer, power=wanted.power, **shared)
    kinds: dict[str, type[WarmupConstant]] = {
        "constant": WarmupConstant,
        "linear": optimizers.WarmupLinear,
        "cosine": optimizers.WarmupCosine,
    }
    return kinds[wanted.kind](optimizer, **shared)
