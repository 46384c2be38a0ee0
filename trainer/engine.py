"""The engine: a model under DeepSpeed ZeRO with one of our optimizers and schedules, and the training step."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bellwether import optimizers
from bellwether.optimizers import ShardedOptimizer, WarmupConstant
from bellwether.optimizers.param_groups import named
from bellwether.optimizers.rounding import SIXTEEN_BITS
from bellwether.optimizers.scalars import set_lr
from bellwether.optimizers.shards import deepspeed as zero_shards
from bellwether.trainer import buffers, communication
from bellwether.trainer.acceleration import accelerate
from bellwether.trainer.config import Config, ConfigError
from bellwether.trainer.data.sampling import rank_positions
from bellwether.trainer.distributed import World, run_on_all_ranks
from bellwether.trainer.libraries import import_deepspeed
from bellwether.trainer.models.carried_state import CarriedState
from bellwether.trainer.models.partitioned import numel, partitioning
from bellwether.trainer.models.tasks import Task
from bellwether.trainer.optimization import make_optimizer, make_schedule, with_averaging
from bellwether.trainer.param_groups import GroupCount, count_groups, param_groups
from bellwether.trainer.phases import Phase, Split

Batch = dict[str, Tensor]

# Failures of `deepspeed.initialize` that no key of engine.deepspeed is to blame for.
_NOT_FROM_THE_CONFIG = (torch.OutOfMemoryError, dist.DistError)

_LOSS_SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class StepResult:
    """The result of a training step. Its tensors may not be computed yet: reading one waits for the device.

    Attributes:
        loss: scalar, float64: mean over this rank's samples of the global batch, without ``optimizer.loss_factor``.
        lr: learning rate of this step, of parameters without a factor of their own (``lr_scale``, ``layer_decay``).
        grad_norm: norm of the global batch's gradient before clipping, of the scaled loss's where fp16 skipped the step.
        loss_scale: the factor of the loss in fp16; 1 in other precisions.
    """

    loss: Tensor
    lr: float
    grad_norm: float | Tensor | None
    loss_scale: float


class Engine:
    """A model, its optimizer and its schedule under DeepSpeed. Nothing else touches DeepSpeed's engine.

    Args:
        deepspeed: what ``deepspeed.initialize`` returned for the model and the optimizer, attached.
        optimizer: ours, as opposed to DeepSpeed's wrapper around it.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        loss_factor: factor of the loss before the backward pass.
        peak_lr: of parameters without a factor of their own; None: of the first param group.
        groups: what the optimizer's param groups contain.
    """

    def __init__(
        self,
        deepspeed: Any,
        optimizer: ShardedOptimizer,
        schedule: WarmupConstant,
        precision: str = "fp32",
        loss_factor: float = 1.0,
        peak_lr: float | None = None,
        groups: Sequence[GroupCount] = (),
    ) -> None:
        self._deepspeed = deepspeed
        self.optimizer, self.schedule = optimizer, schedule
        self.precision, self.loss_factor = precision, loss_factor
        self.groups = groups
        self._peak_lr = schedule.base_lrs[0] if peak_lr is None else peak_lr
        self._lr_factor = 1.0  # of the next step
        self.grad_norm: float | Tensor | None = None  # of the last update, before clipping

    @property
    def task(self) -> nn.Module:
        """The model with its loss. Under ZeRO-3 its parameters are whole inside `gathered` alone."""
        return self._deepspeed.module

    @property
    def lr(self) -> float:
        """The learning rate of the next step, of parameters without a factor of their own."""
        pairs = list(zip(self.schedule.get_last_lr(), self.schedule.base_lrs, strict=True))
        # Without a group of factor 1, that of the highest factor: that of others may be 0.
        rate, peak = next((pair for pair in pairs if pair[1] == self._peak_lr), max(pairs, key=lambda pair: pair[1]))
        return float(rate if peak in (0, self._peak_lr) else rate / peak * self._peak_lr)

    def results(self, loss: float, *further: float) -> dict[str, float]:
        """Further results of an evaluation, from its mean losses: perplexity for language modelling."""
        return self.task.results(loss, *further) if isinstance(self.task, Task) else {}

    def set_split(self, split: Split) -> None:
        """Change micro-batch and accumulation between two steps. Its next step takes a batch of this split."""
        deepspeed = self._deepspeed
        deepspeed.set_train_micro_batch_size(split.micro)
        deepspeed.set_train_batch_size(split.global_batch)
        # DeepSpeed ends a step where this count of all micro-batches is a multiple of the accumulation.
        deepspeed.micro_steps = 0
        if hasattr(deepspeed.optimizer, "gradient_accumulation_steps"):  # read with an offloaded optimizer
            deepspeed.optimizer.gradient_accumulation_steps = split.accumulation
        if isinstance(self.task, Task):
            own = rank_positions(dist.get_rank(), split.world_size, split.micro, split.accumulation)
            self.task.carry(own.ravel().tolist(), split.global_batch, deepspeed.device)

    def scale_lr(self, factor: float) -> None:
        """Multiply the learning rates of the next step alone."""
        for group in self.optimizer.param_groups:
            set_lr(group, group["lr"] * factor)  # the schedule sets it anew after the step
        self._lr_factor = factor

    def train_step(self, micro_batches: Iterable[Batch]) -> StepResult:
        """Forward, backward and update on all of this rank's micro-batches of a global batch, then the schedule. Collective.

        Nothing here waits for the device.
        """
        lr, loss_scale = self.lr * self._lr_factor, self.loss_scale
        accumulation = self._deepspeed.gradient_accumulation_steps()
        mean_loss = torch.zeros((), dtype=torch.float64, device=self._deepspeed.device)
        for batch in micro_batches:
            losses = self.forward(batch)[0]
            # All micro-batches are of one size, so the mean of their means is the mean over the global batch.
            loss = losses.mean()
            self.backward(loss * self.loss_factor)
            self.step()
            mean_loss += loss.detach().double() / accumulation
        # The schedule counts samples, and these are consumed even where fp16 overflowed and DeepSpeed skipped the update.
        self.schedule.step()
        self._lr_factor = 1.0
        return StepResult(mean_loss, lr, self.grad_norm, loss_scale)

    def forward(self, batch: Batch) -> tuple[Tensor, ...]:
        """Loss and correctness of each sample of a micro-batch, [B], [B], and in evaluation mode a task's predictions, [B, ...]."""
        return self._deepspeed(**batch)

    def backward(self, loss: Tensor) -> None:
        """Backward pass of the mean loss of a micro-batch. DeepSpeed divides it by the number of accumulation steps."""
        if self.precision == "fp16" and not self._deepspeed.zero_optimization_stage():
            # Without ZeRO, DeepSpeed 0.19.8 divides fp16's gradients by a scale by which it has not multiplied the loss.
            loss = loss * self.loss_scale
        self._deepspeed.backward(loss)

    def step(self) -> None:
        """To be called after each backward pass; after the last one of a global batch it updates the weights and `grad_norm`."""
        deepspeed = self._deepspeed
        if not deepspeed.is_gradient_accumulation_boundary():
            deepspeed.step()
            return
        # Without ZeRO in fp32, DeepSpeed keeps no norm. At this point the gradients are averaged, and not clipped yet.
        is_unwrapped = deepspeed.optimizer is deepspeed.basic_optimizer
        if is_unwrapped:
            gradients = [p.grad for p in self.task.parameters() if p.grad is not None]
            self.grad_norm = torch.nn.utils.get_total_norm(gradients)
        scale_before = self.loss_scale
        deepspeed.step()
        if is_unwrapped:
            return
        norm, stage = deepspeed.get_global_grad_norm(), deepspeed.zero_optimization_stage()
        if norm is not None and stage in (0, 3):
            # DeepSpeed 0.19.8: without ZeRO this is the scaled gradient's norm; ZeRO-3 divides by the next step's scale.
            norm = norm * ((self.loss_scale if stage else 1.0) / scale_before)
        self.grad_norm = norm

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Context in which the model is in evaluation mode; afterwards it is in training mode."""
        self._deepspeed.eval()
        try:
            yield
        finally:
            self._deepspeed.train()

    def recompute_batch_norm(self, batches: Iterable[Batch]) -> None:
        """`bellwether.optimizers.recompute_batch_norm` for the model. Collective."""
        optimizers.recompute_batch_norm(_BatchAsArgument(self._deepspeed), batches)

    def in_model_order(self, values: dict[str, float]) -> dict[str, float]:
        """Sort values by parameter name into the model's order; an optimizer has them by param group."""
        order = {name: index for index, (name, _) in enumerate(named(self.task))}
        return dict(sorted(values.items(), key=lambda item: order.get(item[0], len(order))))

    def buffers(self) -> list[tuple[str, Tensor]]:
        """This rank's own persistent buffers, by name: those that a checkpoint holds."""
        return list(buffers.persistent(self.task).items())

    @property
    def carried(self) -> CarriedState | None:
        """The state that the model carries from step to step, for this rank's streams; None for most models."""
        return getattr(self.task, "carried", None)

    def frozen(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that are not trained, by name."""
        return [(name, p) for name, p in self.task.named_parameters() if not p.requires_grad]

    def elements(self, parameter: nn.Parameter) -> int:
        """The number of elements of a whole parameter, also where ZeRO-3 has partitioned it."""
        return int(getattr(parameter, "ds_numel", parameter.numel()))

    def gathered(self, parameter: nn.Parameter, modify: bool = False) -> Any:
        """Context in which a parameter is whole on each rank; with ``modify``, rank 0's changes reach all. Collective."""
        return import_deepspeed().zero.GatheredParameters([parameter], modifier_rank=0 if modify else None)

    def publish_weights(self) -> None:
        """Copy the optimizer's fp32 weights into the model, after a checkpoint was read into them. Collective."""
        zero_shards.publish(self._deepspeed)

    @property
    def loss_scale(self) -> float:
        """The factor of the next loss before its backward pass: 1 except in fp16."""
        return self.loss_scaler_state().get("cur_scale", 1.0)

    def loss_scaler_state(self) -> dict[str, float]:
        """State of fp16's dynamic loss scaler; empty in other precisions."""
        scaler = self._loss_scaler()
        return {name: getattr(scaler, name) for name in _LOSS_SCALER_STATE if hasattr(scaler, name)}

    def load_loss_scaler_state(self, state: dict[str, float]) -> None:
        """Restore `loss_scaler_state`; does nothing in other precisions than fp16."""
        scaler = self._loss_scaler()
        if scaler is not None:
            vars(scaler).update(state)

    def _loss_scaler(self) -> Any:
        wrapper = self._deepspeed.optimizer
        if self.precision != "fp16":
            return None
        return getattr(wrapper, "loss_scaler", None) or getattr(wrapper, "loss_scale_config", None)

    def destroy(self) -> None:
        """Release the resources that DeepSpeed holds."""
        self._deepspeed.destroy()


class _BatchAsArgument(nn.Module):
    """A model that takes a batch as one argument."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> object:
        return self.model(**batch)


def partitioned(phase: Phase) -> AbstractContextManager[None]:
    """Context in which the model of a phase is built: under ZeRO-3, each layer is split over the ranks as soon as it exists."""
    zero = phase.config.engine.deepspeed.get("zero_optimization")
    offload = zero.get("offload_param") if isinstance(zero, dict) else None
    # Parts on NVMe have the type of training from the start.
    on_nvme = isinstance(offload, dict) and offload.get("device") == "nvme"
    if phase.config.engine.stage < 3 or on_nvme:
        return partitioning(None)
    return partitioning(deepspeed_config(phase, sys.maxsize))


def build(task: nn.Module, phase: Phase, world: World) -> Engine:
    """Build the engine of one phase around a model. Collective.

    Raises:
        ConfigError: if a device lacks the precision, or DeepSpeed rejects a key of ``engine.deepspeed``.
    """
    check_precision(phase.config, world)
    task.to(world.device)
    accelerate(task, phase.config.engine, world.device)
    groups = param_groups(task, phase.config.optimizer)
    optimizer = make_optimizer(groups, phase.config, phase.lr)
    counts = count_groups(optimizer.param_groups, phase.lr)
    optimizer = with_averaging(optimizer, phase)
    schedule = make_schedule(optimizer, phase)
    trained = sum(numel(p) for p in task.parameters() if p.requires_grad)
    try:
        engine, *_ = import_deepspeed().initialize(
            model=task, optimizer=optimizer, config=deepspeed_config(phase, trained, world.device.type == "cuda")
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
    config = phase.config
    _check_rounding(config, optimizer)
    return Engine(engine, optimizer, schedule, config.engine.precision, config.optimizer.loss_factor, phase.lr, counts)


def _check_rounding(config: Config, optimizer: ShardedOptimizer) -> None:
    """Refuse options of 16-bit weights where DeepSpeed has given the optimizer fp32 weights after all.

    Raises:
        ConfigError: naming the option.
    """
    key = next((key for key in ("stochastic_rounding", "kahan_sum") if getattr(config.optimizer, key)), None)
    dtypes = {shard.tensor.dtype for shard in optimizer.shards}
    if key is not None and dtypes and dtypes.isdisjoint(SIXTEEN_BITS):
        problem = (
            f"DeepSpeed has given the optimizer {', '.join(map(str, dtypes))} weights, which lose no small updates"
        )
        advice = (
            "remove it, or the keys of engine.deepspeed that keep fp32 weights, as data_types and offload_optimizer"
        )
        raise ConfigError(f"optimizer.{key}", True, problem, advice)


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


def deepspeed_config(phase: Phase, elements: int, on_gpu: bool = True) -> dict[str, Any]:
    """DeepSpeed's config for a phase; keys of ``engine.deepspeed`` override ours.

    Args:
        elements: number of elements of all trained parameters.
    """
    engine = phase.config.engine
    weight_bytes = 4 if engine.precision == "fp32" else 2
    reduction = communication.choose(engine.stage, weight_bytes, elements, phase.split.world_size, on_gpu)
    config: dict[str, Any] = {
        "train_batch_size": phase.split.global_batch,
        "train_micro_batch_size_per_gpu": phase.split.micro,
        "gradient_accumulation_steps": phase.split.accumulation,
        # DeepSpeed 0.19 clips at 1.0 where this is left out.
        "gradient_clipping": phase.config.optimizer.clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": engine.stage,
            "reduce_bucket_size": reduction.bucket,
            "overlap_comm": reduction.overlap,
        },
        "bf16": {"enabled": engine.precision == "bf16"},
        "fp16": {"enabled": engine.precision == "fp16"},
        "steps_per_print": 2**62,
        # Its throughput timer waits for the device twice in each micro-batch.
        "timers": {"throughput": {"enabled": False}},
    }
    if engine.precision != "fp32" and engine.stage:
        # Without ZeRO, DeepSpeed can only accumulate in the model's own precision. Stage 1 with fp32 is BF16_Optimizer, which
        # keeps fp32 weights in any case.
        in_fp32 = not (engine.has_bf16_masters and engine.stage == 1)
        config["data_types"] = {"grad_accum_dtype": "fp32" if in_fp32 else "bf16"}
    if engine.has_bf16_masters:
        # DeepSpeed 0.19.8 refuses bf16 weights with fp32 moments. These it does not touch: ours stay fp32 in any case.
        config["bf16"]["bf16_optimizer_states"] = True
    for key, value in engine.deepspeed.items():
        ours = config.get(key)
        config[key] = {**ours, **value} if isinstance(ours, dict) and isinstance(value, dict) else value
    return config
