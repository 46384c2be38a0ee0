"""The pieces in DeepSpeed's optimizers: ZeRO stage 1, 2 and 3, BF16_Optimizer, and stage 0 in 32 and 16 bit.

Read off DeepSpeed 0.19.8. Only what each wrapper itself computes with is used: `param._hp_mapping`, which looks like
the same information, is wrong under round_robin_gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

import torch.distributed as dist
from torch import Tensor

from bellwether.optimizers.param_groups import named
from bellwether.optimizers.sharded import Attachment
from bellwether.optimizers.shards.layout import ParameterInfo, ParameterSlice, ShardLayout, cut

Names = dict[Tensor, str]


def attachment(engine: Any) -> Attachment:
    """What a `DeepSpeedEngine` has made of its parameters, on this rank.

    Raises:
        NotImplementedError: where DeepSpeed does not call the optimizer it was given, or splits in a way not known here.
    """
    _refuse(engine)
    _refuse_what_is_split_otherwise(engine)
    names: Names = {parameter: name for name, parameter in named(engine.module)}
    found = list(_wrapper(engine)[0](engine.optimizer, names))
    return Attachment(found, _gradient_norm(engine), publish=functools.partial(publish, engine))


def publish(engine: Any) -> None:
    """Copy the shards' weights into the model, on all ranks: after a checkpoint was read into them. Collective."""
    _wrapper(engine)[1](engine.optimizer)


def _gradient_norm(engine: Any) -> Callable[[], float] | None:
    """The norm of the gradients as step() sees them: from ZeRO, whose step() calls see a part of the gradients each."""
    wrapper = engine.optimizer
    if not hasattr(wrapper, "single_partition_of_fp32_groups") and not hasattr(wrapper, "fp32_partitioned_groups_flat"):
        return None  # one step() call for all, which can sum for itself

    def norm() -> float:
        if wrapper._global_grad_norm is None:
            raise RuntimeError("prenormalize: DeepSpeed was told not to compute the gradient norm; let it")
        found, clip = float(wrapper._global_grad_norm), float(wrapper.clip_grad)
        # As DeepSpeed clips: it divides by (norm + 1e-6) / clip.
        return found / max(1.0, (found + 1e-6) / clip) if clip > 0 else found

    return norm


def _plain(optimizer: Any, names: Names) -> Iterable[ShardLayout]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield ShardLayout.whole(parameter, names[parameter])


def _unfused(wrapper: Any, names: Names) -> Iterable[ShardLayout]:
    """16 bit without ZeRO: a fp32 master of each parameter, whole on each rank."""
    for models, masters in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
        for model, master in zip(models, masters, strict=True):
            yield ShardLayout.whole(master, names[model])


def _publish_unfused(wrapper: Any) -> None:
    for models, masters in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
        for model, master in zip(models, masters, strict=True):
            model.data.copy_(master.data)


def _zero12(wrapper: Any, names: Names) -> Iterable[ShardLayout]:
    """ZeRO-1 and 2: each param group one long flat tensor, cut into equal partitions."""
    for i, flat in enumerate(wrapper.single_partition_of_fp32_groups):
        group = wrapper.real_dp_process_group[i]
        yield _partition(flat, wrapper.round_robin_bit16_groups[i], wrapper.round_robin_bit16_offsets[i], group, names)


def _publish_zero12(wrapper: Any) -> None:
    # The wrapper's own update_lp_params(): masters to their partition of the model's flat tensor, then all-gather.
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
    pieces = cut(zip(parameters, offsets, strict=True), begin, begin + flat.numel())
    return ShardLayout(flat, tuple(parameters), pieces, group)


def _zero3(wrapper: Any, names: Names) -> Iterable[ShardLayout]:
    """ZeRO-3: sub-groups of whole parameters; each parameter cut over all ranks, the last cut short or empty.

    The rest of a rank's cut is padding that DeepSpeed never initialises.
    """
    for i, flat in enumerate(wrapper.fp32_partitioned_groups_flat):
        group = wrapper.sub_group_process_groups[i]
        rank = dist.get_rank(group)
        parameters, pieces, offset = [], [], 0
        for index, model in enumerate(wrapper.fp16_groups[i]):
            parameters.append(ParameterInfo(names[model], tuple(model.ds_shape)))
            cut_numel = model.partition_numel()
            owned = max(0, min(cut_numel, model.ds_numel - rank * cut_numel))
            if owned:
                pieces.append(ParameterSlice(index, offset, rank * cut_numel, owned))
            offset += cut_numel
        yield ShardLayout(flat, tuple(parameters), tuple(pieces), group)


def _publish_zero3(wrapper: Any) -> None:
    # Small parameters stay gathered from one step to the next: they would keep the weights of before.
    wrapper._partition_all_parameters()
    for i in range(len(wrapper.fp16_groups)):
        wrapper._reassign_or_swap_out_partitioned_parameters(i)
    if wrapper.persistent_parameters:
        wrapper.persistent_parameters[0].all_gather(wrapper.persistent_parameters)


def _nothing(optimizer: Any) -> None:
    """The optimizer works on the model's own parameters."""


def _wrapper(engine: Any) -> tuple[Callable[[Any, Names], Iterable[ShardLayout]], Callable[[Any], None]]:
    kind = type(engine.optimizer).__name__
    if engine.optimizer is engine.basic_optimizer:
        return _plain, _nothing
    known = {
        "FP16_UnfusedOptimizer": (_unfused, _publish_unfused),
        "DeepSpeedZeroOptimizer": (_zero12, _publish_zero12),
        "BF16_Optimizer": (_bf16, _publish_bf16),
        "DeepSpeedZeroOptimizer_Stage3": (_zero3, _publish_zero3),
    }
    if kind not in known:
        raise NotImplementedError(
            f"attach: DeepSpeed wraps the optimizer in {kind}, which is not known here; use one of {', '.join(known)}"
        )
    return known[kind]


def _refuse(engine: Any) -> None:
    """Modes in which DeepSpeed updates weights by itself, past the optimizer that it was given."""
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
    for key, found in reasons.items():
        if found:
            raise NotImplementedError(
                f"attach: with {key} DeepSpeed replaces or bypasses the optimizer; take it out of DeepSpeed's config"
            )


def _refuse_what_is_split_otherwise(engine: Any) -> None:
    """Parallelism that cuts parameters, or deals them out, beyond the process group that ZeRO works in."""
    optimizer = engine.basic_optimizer
    adapts = any(group.get("trust_ratio") for group in optimizer.param_groups)
    if adapts and _tensor_parallel_size(engine) > 1:
        raise NotImplementedError(
            "attach: under tensor parallelism a rank sees a part of a parameter and cannot tell its norm; use an "
            "optimizer without trust ratios, or FSDP2 with DTensors, which say how they are cut"
        )
    dealt_out = {
        "pipeline parallelism": getattr(engine, "pipeline_parallelism", False),
        "experts": getattr(engine, "has_moe_layers", False),
        "tensor parallelism": _tensor_parallel_size(engine) > 1,
    }
    for kind, found in dealt_out.items():
        if found and optimizer.sums_over_all:
            raise NotImplementedError(
                f"attach: {optimizer.name} here needs a sum over all parameters, and under {kind} the ranks of a process "
                "group do not have all; take prenormalize or Swats out"
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
