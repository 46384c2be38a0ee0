"""The engine: DeepSpeed's, with one of our optimizers and one of our schedules."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bellwether import optimizers
from bellwether.optimizers import ShardedOptimizer, WarmupConstant
from bellwether.optimizers.param_groups import named
from bellwether.trainer import buffers
from bellwether.trainer.config import Config, ConfigError
from bellwether.trainer.config.schema import Optimizer
from bellwether.trainer.distributed import World, import_deepspeed, run_on_all_ranks
from bellwether.trainer.phases import Phase

# Failures of `deepspeed.initialize` that no key of engine.deepspeed is to blame for.
_NOT_FROM_THE_CONFIG = (torch.OutOfMemoryError, dist.DistError)

_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass
class Engine:
    """A model under training: call it, `backward`, `step`."""

    deepspeed: Any
    optimizer: ShardedOptimizer
    schedule: WarmupConstant
    precision: str = "fp32"
    norm: float | Tensor | None = (
        None  # of the last update's gradient, before clipping; a tensor may not be computed yet
    )

    @property
    def task(self) -> nn.Module:
        return self.deepspeed.module

    @property
    def name(self) -> str:
        """Of the update rule, as people know it."""
        return self.optimizer.name

    def in_order(self, values: dict[str, float]) -> dict[str, float]:
        """Values by parameter name in the model's order: an optimizer has them by group, weights before what is no weight."""
        place = {name: index for index, (name, _) in enumerate(named(self.task))}
        return dict(sorted(values.items(), key=lambda item: place.get(item[0], len(place))))

    def backward(self, loss: Tensor) -> None:
        """Of the mean loss of a micro-batch."""
        if self.precision == "fp16" and not self.deepspeed.zero_optimization_stage():
            # Without ZeRO, DeepSpeed 0.19.8 divides fp16's gradients by a scale that it has not multiplied the loss with.
            loss = loss * self.scale
        self.deepspeed.backward(loss)

    def step(self) -> None:
        """After each backward pass; the last one of a global batch moves the weights, and leaves its `norm`."""
        deepspeed = self.deepspeed
        if not deepspeed.is_gradient_accumulation_boundary():
            deepspeed.step()
            return
        # Without ZeRO in fp32, DeepSpeed keeps no norm; by now the gradients are averaged, and not clipped yet.
        own = deepspeed.optimizer is deepspeed.basic_optimizer
        if own:
            gradients = [p.grad for p in self.task.parameters() if p.grad is not None]
            self.norm = torch.nn.utils.get_total_norm(gradients)
        before = self.scale
        deepspeed.step()
        if own:
            return
        norm, stage = deepspeed.get_global_grad_norm(), deepspeed.zero_optimization_stage()
        if norm is not None and stage in (0, 3):
            # As of DeepSpeed 0.19.8: without ZeRO it is that of the scaled gradient; ZeRO-3 divides by the next step's scale.
            norm = norm * ((self.scale if stage else 1.0) / before)
        self.norm = norm

    @property
    def scale(self) -> float:
        """What the next loss is multiplied with before its backward pass: 1 but in fp16."""
        return self.loss_scale().get("cur_scale", 1.0)

    def buffers(self) -> list[tuple[str, Tensor]]:
        """The buffers that belong to a checkpoint, by name; each rank has its own."""
        return list(buffers.lasting(self.task).items())

    def frozen(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that are not trained. Under ZeRO-3 they are whole inside `gathered` alone."""
        return [(name, p) for name, p in self.task.named_parameters() if not p.requires_grad]

    def gathered(self, parameter: nn.Parameter, modify: bool = False) -> Any:
        """Context in which a parameter is whole on each rank; with ``modify``, rank 0's changes reach all. Collective."""
        return import_deepspeed().zero.GatheredParameters([parameter], modifier_rank=0 if modify else None)

    def loss_scale(self) -> dict[str, float]:
        """What the dynamic loss scale of fp16 has come to; nothing in other precisions."""
        scaler = self._scaler()
        return {name: getattr(scaler, name) for name in _SCALE if hasattr(scaler, name)}

    def set_loss_scale(self, saved: dict[str, float]) -> None:
        """Take over what `loss_scale` gave, where both then and now are fp16."""
        scaler = self._scaler()
        if scaler is not None:
            vars(scaler).update(saved)

    def _scaler(self) -> Any:
        wrapper = self.deepspeed.optimizer
        if self.precision != "fp16":
            return None
        return getattr(wrapper, "loss_scaler", None) or getattr(wrapper, "loss_scale_config", None)

    def destroy(self) -> None:
        self.deepspeed.destroy()


def build(task: nn.Module, phase: Phase, world: World) -> Engine:
    """Build the engine of one phase around a model. Collective.

    Raises:
        ConfigError: if a device lacks the precision, or DeepSpeed rejects a key of ``engine.deepspeed``.
    """
    check_precision(phase.config, world)
    task.to(world.device)
    optimizer = _averaged(make_optimizer(task, phase.config.optimizer, phase.lr), phase)
    schedule = _schedule(optimizer, phase)
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    try:
        engine, *_ = import_deepspeed().initialize(
            model=task, optimizer=optimizer, config=deepspeed_config(phase, trained)
        )
        optimizers.attach(engine)
    except _NOT_FROM_THE_CONFIG:
        raise
    except Exception as error:
        keys = phase.config.engine.deepspeed
        if not keys:
            raise
        # DeepSpeed's reaction to a key that it rejects ranges from a sentence to an AttributeError deep inside.
        problem = f"DeepSpeed rejects it: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        advice = "remove the key, or see DeepSpeed's documentation"
        raise ConfigError("engine.deepspeed", keys, problem, advice) from error
    return Engine(engine, optimizer, schedule, phase.config.engine.precision)


def check_precision(config: Config, world: World) -> None:
    """Check that every rank's device supports ``engine.precision``. Collective.

    Raises:
        ConfigError: on all ranks alike, naming the first machine whose device does not and what works there.
    """
    run_on_all_ranks(world, lambda: _check_precision_here(config.engine.precision, world.device))


def _check_precision_here(precision: str, device: torch.device) -> None:
    accelerator = import_deepspeed().accelerator.get_accelerator()
    supported = ["fp32"]
    supported += ["bf16"] if accelerator.is_bf16_supported() else []
    supported += ["fp16"] if accelerator.is_fp16_supported() else []
    if precision not in supported:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        problem = f"the {name} of {socket.gethostname()} does not support it"
        raise ConfigError("engine.precision", precision, problem, f"supported there: {', '.join(supported)}")


def reduce_bucket(elements: int) -> int:
    """Elements of gradients that ZeRO reduces at a time: DeepSpeed's default, but no more than there are, as it makes buffers
    of this size whether or not a model fills them."""
    return min(500_000_000, elements)


def deepspeed_config(phase: Phase, elements: int) -> dict[str, Any]:
    """DeepSpeed's config for a phase, `engine.deepspeed` laid over ours.

    Args:
        elements: of all parameters that are trained.
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
        "zero_optimization": {"stage": engine.stage, "reduce_bucket_size": reduce_bucket(elements)},
        "bf16": {"enabled": engine.precision == "bf16"},
        "fp16": {"enabled": engine.precision == "fp16"},
        "steps_per_print": 2**62,
    }
    if engine.precision != "fp32" and engine.stage:
        # Without ZeRO, DeepSpeed can only accumulate in the model's own precision.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    for key, value in engine.deepspeed.items():
        ours = config.get(key)
        config[key] = {**ours, **value} if isinstance(ours, dict) and isinstance(value, dict) else value
    return config


def make_optimizer(task: nn.Module, wanted: Optimizer, lr: float) -> ShardedOptimizer:
    """The update rule that a config names, on a model's two param groups."""
    make: dict[str, Callable[..., ShardedOptimizer]] = {
        "lamb": optimizers.Lamb,
        "lars": optimizers.Lars,
        "adamw": optimizers.AdamW,
        "adam": optimizers.Adam,
        "radam": optimizers.RAdam,
        "sgd": optimizers.SGD,
        "swats": _swats,
    }
    return make[wanted.name](optimizers.groups(task), **{**wanted.options(), "lr": lr})


def _averaged(optimizer: ShardedOptimizer, phase: Phase) -> ShardedOptimizer:
    """With the averages that the config asks for around it."""
    average = phase.config.averaging
    if average.kind == "lookahead":
        return optimizers.Lookahead(optimizer, average.k, average.alpha)
    if average.kind == "none":
        return optimizer
    return optimizers.WeightAverage(
        optimizer, average.kind, start=phase.average_from, every=phase.average_every, decay=average.decay
    )


def _swats(groups: Any, tolerance: float = 1e-9, **options: Any) -> ShardedOptimizer:
    return optimizers.Swats(optimizers.AdamW(groups, **options), tolerance)


def _schedule(optimizer: torch.optim.Optimizer, phase: Phase) -> WarmupConstant:
    wanted = phase.config.schedule
    shared: dict[str, Any] = {
        "batch": phase.split.global_batch,
        "total": phase.samples,
        "warmup": phase.warmup,
        "start": wanted.start,
        "final": wanted.final,
        "momentum": wanted.momentum,
        "scale_decay": wanted.scale_decay,
    }
    if wanted.kind == "trapezoid":
        return optimizers.Trapezoid(optimizer, cooldown=phase.cooldown, **shared)
    if wanted.kind == "step":
        return optimizers.WarmupStep(optimizer, milestones=phase.milestones, drop=wanted.drop, **shared)
    if wanted.kind == "polynomial":
        return optimizers.WarmupPolynomial(optimizer, power=wanted.power, **shared)
    kinds: dict[str, type[WarmupConstant]] = {
        "exponential": optimizers.Exponential,
        "constant": WarmupConstant,
        "linear": optimizers.WarmupLinear,
        "cosine": optimizers.WarmupCosine,
    }
    return kinds[wanted.kind](optimizer, **shared)
