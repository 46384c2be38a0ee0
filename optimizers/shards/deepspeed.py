"""The slices in DeepSpeed's optimizers: ZeRO stage 1, 2 and 3, BF16_Optimizer, and stage 0 in 32 and 16 bit.

Written for DeepSpeed 0.19.8. Uses only what each wrapper itself computes with: `param._hp_mapping`, which seems to hold
the same information, is wrong under round_robin_gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from bellwether.optimizers.param_groups import named
from bellwether.optimizers.sharded import Attachment
from bellwether.optimizers.shards.layout import ParameterInfo, ParameterSlice, ShardLayout, cut
from bellwether.optimizers.shards.verification import Truth, verify

Names = dict[Tensor, str]


class _Wrapper(NamedTuple):
    """How to read one of DeepSpeed's optimizers."""

    shards: Callable[[Any, Names], Iterable[ShardLayout]]
    publish: Callable[[Any], None]  # copies the shards' weights into the model
    has_gradient_norm: bool  # ZeRO, whose step() calls see a part of the gradients each


def attachment(engine: Any) -> Attachment:
    """How a `DeepSpeedEngine` has sharded its parameters, on this rank.

    Raises:
        NotImplementedError: if DeepSpeed does not call the optimizer it was given, or splits parameters in an unknown way.
        RuntimeError: if the slices are not the model's weights, or do not cover each parameter once.
    """
    _refuse_bypassed_optimizer(engine)
    _refuse_other_parallelism(engine)
    _refuse_double_clipping(engine)
    names: Names = {parameter: name for name, parameter in named(engine.module)}
    wrapper = _wrapper(engine)
    norm = functools.partial(_gradient_norm, engine.optimizer) if wrapper.has_gradient_norm else None
    shards = list(wrapper.shards(engine.optimizer, names))
    verify(shards, _truth(engine), engine=_version(engine), expected=_given(engine, names))
    frozen = [name for name, parameter in named(engine.module) if not parameter.requires_grad]
    unfrozen = functools.partial(_unfrozen, engine, frozenset(frozen)) if frozen else None
    return Attachment(shards, norm, publish=functools.partial(publish, engine), unfrozen=unfrozen)


def _unfrozen(engine: Any, frozen: frozenset[str]) -> list[str]:
    """The parameters that were frozen when the engine was built, which gave them no master weights, and are not now."""
    return [name for name, parameter in named(engine.module) if parameter.requires_grad and name in frozen]


def publish(engine: Any) -> None:
    """Copy the shards' weights into the model, on all ranks, as after loading a checkpoint into them. Collective."""
    _wrapper(engine).publish(engine.optimizer)


def _version(engine: Any) -> str:
    import deepspeed

    return f"{type(engine.optimizer).__name__} of DeepSpeed {deepspeed.__version__}"


def _given(engine: Any, names: Names) -> list[ParameterInfo]:
    """The parameters that the optimizer was given and that are to be trained now."""
    given = [p for p in engine.basic_optimizer.given if p.requires_grad and p in names]
    return [ParameterInfo(names[p], tuple(getattr(p, "ds_shape", p.shape))) for p in given]


def _truth(engine: Any) -> Truth:
    """Finds the model's own weights of a slice: the whole parameter, or under ZeRO-3 the part that this rank stores."""
    models: dict[str, Any] = dict(named(engine.module))

    def truth(parameter: ParameterInfo, part: ParameterSlice) -> Tensor | None:
        whole, start = models[parameter.name], part.start
        if hasattr(whole, "ds_tensor") and whole.ds_status.name != "AVAILABLE":
            group, whole = whole.ds_process_group, whole.ds_tensor
            if whole.status.name != "AVAILABLE":  # offloaded to NVMe
                return None
            start -= dist.get_rank(group) * whole.ds_numel
        values: Tensor = whole.detach().reshape(-1)
        return values[max(0, start) : max(0, start + part.length)]

    return truth


def _gradient_norm(wrapper: Any) -> float:
    """The global norm of the gradients that step() sees, after clipping."""
    if wrapper._global_grad_norm is None:
        raise RuntimeError(
            "prenormalize, max_grad_norm: DeepSpeed is configured not to compute the gradient norm; enable it"
        )
    norm, clip = float(wrapper._global_grad_norm), float(wrapper.clip_grad)
    # As DeepSpeed clips: it divides by (norm + 1e-6) / clip.
    return norm / max(1.0, (norm + 1e-6) / clip) if clip > 0 else norm


def _plain(optimizer: Any, names: Names) -> Iterable[ShardLayout]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield ShardLayout.whole(parameter, names[parameter])


def _unfused(wrapper: Any, names: Names) -> Iterable[ShardLayout]:
    """16 bit without ZeRO: each rank has a whole fp32 master copy of each parameter."""
    for models, masters in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
        for model, master in zip(models, masters, strict=True):
            yield ShardLayout.whole(master, names[model])


def _publish_unfused(wrapper: Any) -> None:
    for models, masters in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
        for model, master in zip(models, masters, strict=True):
            model.data.copy_(master.data)


def _zero12(wrapper: Any, names: Names) -> Iterable[ShardLayout]:
    """ZeRO-1 and 2: each param group is one flat tensor, split into equal partitions."""
    for i, flat in enumerate(wrapper.single_partition_of_fp32_groups):
        group = wrapper.real_dp_process_group[i]
        yield _partition(flat, wrapper.round_robin_bit16_groups[i], wrapper.round_robin_bit16_offsets[i], group, names)


def _publish_zero12(wrapper: Any) -> None:
    # The wrapper's update_lp_params() copies masters to their partition of the model's flat tensor and all-gathers.
    wrapper.update_lp_params()
    for i in range(len(wrapper.bit16_groups)):
        wrapper._update_model_bit16_weights(i)


def _bf16(wrapper: Any, names: Names) -> Iterable[ShardLayout]:
    """BF16_Optimizer (stage 1, bf16 weights, fp32 gradients): as ZeRO-1, but one step() for all groups."""
    for i, flat in enumerate(wrapper.fp32_groups_flat_partition):
        models = wrapper.bf16_groups[i]
        offsets = [0, *accumulate(p.numel() for p in models)][:-1]
        yield _partition(flat, models, offsets, wrapper.real_dp_process_group[i], names)


def _publish_bf16(wrapper: Any) -> None:
    wrapper.update_lp_params()


def _partition(flat: Tensor, models: Any, offsets: Any, group: dist.ProcessGroup, names: Names) -> ShardLayout:
    parameters = [ParameterInfo(names[p], tuple(p.shape)) for p in models]
    begin = dist.get_rank(group) * flat.numel()
    slices = cut(zip(parameters, offsets, strict=True), begin, begin + flat.numel())
    return ShardLayout(flat, tuple(parameters), slices, group)


def _zero3(wrapper: Any, names: Names) -> Iterable[ShardLayout]:
    """ZeRO-3: sub-groups of parameters, each split equally over all ranks; the last part is short or empty.

    The rest of a rank's part is padding, which DeepSpeed never initializes.
    """
    for i, flat in enumerate(wrapper.fp32_partitioned_groups_flat):
        group = wrapper.sub_group_process_groups[i]
        rank = dist.get_rank(group)
        parameters, slices, offset = [], [], 0
        for index, model in enumerate(wrapper.fp16_groups[i]):
            parameters.append(ParameterInfo(names[model], tuple(model.ds_shape)))
            part_numel = model.partition_numel()
            owned = max(0, min(part_numel, model.ds_numel - rank * part_numel))
            if owned:
                slices.append(ParameterSlice(index, offset, rank * part_numel, owned))
            offset += part_numel
        yield ShardLayout(flat, tuple(parameters), tuple(slices), group)


def _publish_zero3(wrapper: Any) -> None:
    # Small parameters stay gathered from one step to the next, and would keep their old weights.
    wrapper._partition_all_parameters()
    for i in range(len(wrapper.fp16_groups)):
        wrapper._reassign_or_swap_out_partitioned_parameters(i)
    if wrapper.persistent_parameters:
        wrapper.persistent_parameters[0].all_gather(wrapper.persistent_parameters)


def _nothing(optimizer: Any) -> None:
    """The optimizer works on the model's own parameters."""


def _wrapper(engine: Any) -> _Wrapper:
    kind = type(engine.optimizer).__name__
    if engine.optimizer is engine.basic_optimizer:
        return _Wrapper(_plain, _nothing, False)
    wrappers = {
        "FP16_UnfusedOptimizer": _Wrapper(_unfused, _publish_unfused, False),
        "DeepSpeedZeroOptimizer": _Wrapper(_zero12, _publish_zero12, True),
        "BF16_Optimizer": _Wrapper(_bf16, _publish_bf16, False),
        "DeepSpeedZeroOptimizer_Stage3": _Wrapper(_zero3, _publish_zero3, True),
    }
    if kind not in wrappers:
        raise NotImplementedError(
            f"attach: DeepSpeed wraps the optimizer in {kind}, which is not supported; use one of {', '.join(wrappers)}"
        )
    return wrappers[kind]


def _refuse_bypassed_optimizer(engine: Any) -> None:
    """Refuse modes in which DeepSpeed updates weights without the optimizer that it was given."""
    zero = engine._config.zero_config
    offload = zero.offload_optimizer
    device = getattr(offload, "device", "none")
    reasons = {
        "zero_optimization.zenflow": getattr(zero, "zenflow", None) is not None,
        "zero_optimization.offload_optimizer.super_offload": bool(getattr(offload, "super_offload", False)),
        "zero_optimization.offload_optimizer.ratio below 1": offload is not None
        and getattr(offload, "ratio", 1.0) < 1.0,
        "zero_optimization.offload_optimizer.device: nvme": str(getattr(device, "value", device)) == "nvme",
    }
    for key, is_on in reasons.items():
        if is_on:
            raise NotImplementedError(
                f"attach: with {key} DeepSpeed replaces or bypasses the optimizer; remove it from DeepSpeed's config"
            )


def _refuse_other_parallelism(engine: Any) -> None:
    """Refuse parallelism that splits or distributes parameters beyond the process group of ZeRO."""
    optimizer = engine.basic_optimizer
    if optimizer.needs_whole_parameters and _tensor_parallel_size(engine) > 1:
        raise NotImplementedError(
            f"attach: under tensor parallelism a rank holds a part of a parameter, and {optimizer.name} needs its norm or the "
            "whole matrix; use an optimizer without trust ratios, or FSDP2 with DTensors, which have the layout"
        )
    distributed = {
        "pipeline parallelism": getattr(engine, "pipeline_parallelism", False),
        "experts": getattr(engine, "has_moe_layers", False),
        "tensor parallelism": _tensor_parallel_size(engine) > 1,
    }
    for kind, is_on in distributed.items():
        if is_on and optimizer.needs_global_sums:
            raise NotImplementedError(
                f"attach: {optimizer.name} needs sums over all parameters, and under {kind} the ranks of a process group do "
                "not have all of them; remove prenormalize, max_grad_norm or Swats"
            )


def _refuse_double_clipping(engine: Any) -> None:
    own = engine.basic_optimizer.max_grad_norm
    engines = float(engine.gradient_clipping() or 0.0) if own is not None else 0.0
    if own is not None and engines:
        raise ValueError(
            f"attach: max_grad_norm={own:g} of the optimizer, and DeepSpeed clips at gradient_clipping={engines:g} already (1.0 "
            "where its config does not say): remove max_grad_norm, or write gradient_clipping: 0.0 in DeepSpeed's config"
        )


def _tensor_parallel_size(engine: Any) -> int:
    sizes = [1]
    mpu = getattr(engine, "mpu", None)
    for name in ("get_tensor_model_parallel_world_size", "get_model_parallel_world_size"):
        if hasattr(mpu, name):
            sizes.append(int(getattr(mpu, name)()))
    if hasattr(engine, "autotp_size"):
        sizes.append(int(engine.autotp_size() or 1))
    return max(sizes)
