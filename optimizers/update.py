"""One update of all tensors: moments, squared norms over ranks, trust ratios, weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch import Tensor

from bellwether.optimizers.kernels.coefficients import Coefficients
from bellwether.optimizers.kernels.interface import Kernel
from bellwether.optimizers.kernels.reference import RuleCall
from bellwether.optimizers.kernels.tensor_list import TensorList
from bellwether.optimizers.kernels.wide_weights import WideWeights
from bellwether.optimizers.rule import Group, Rule
from bellwether.optimizers.scalars import StepCount, learning_rate
from bellwether.optimizers.sharded import Attachment
from bellwether.optimizers.shards.layout import ShardLayout, sqrt, sum_by_process_group, sum_over_ranks


@dataclass
class Bucket:
    """Tensors that are updated together: of one param group, step count, process group, device and dtypes."""

    rule: Rule
    group: Group
    shards: list[ShardLayout]
    tensors: TensorList
    kernel: Kernel
    formula: Coefficients | RuleCall  # the latter for the reference kernel
    step: StepCount = 0
    states: list[dict[str, Tensor]] = field(default_factory=list)  # all that the optimizer keeps of each tensor
    wide: WideWeights | None = None  # the fp32 copies in `tensors` of 16-bit weights, to be rounded back

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        return self.shards[0].process_group

    @property
    def is_fusible(self) -> bool:
        """Whether the kernel can do both passes in one call: if no norm is of several segments or over ranks."""
        is_whole = self.process_group is None and not self.tensors.segments.fragmented
        computes_ratio = self.rule.is_norm_ratio and not self.rule.scales_gradient
        return is_whole and computes_ratio and self.kernel.fused_step is not None


def scale_gradients(
    buckets: list[Bucket], attachment: Attachment | None, prenormalize: bool, max_grad_norm: float | None
) -> None:
    """Divide the gradients, as they enter the formulas, by their global norm, or by as much as it exceeds the bound."""
    if not prenormalize and max_grad_norm is None:
        return
    norm = global_gradient_norm(buckets, attachment)
    if not prenormalize:  # clipping: as apex's kernel, gradients are divided only if the norm is above the bound
        norm = max(1.0, norm / max_grad_norm) if max_grad_norm else 1.0
    for bucket in buckets:
        bucket.formula = replace(bucket.formula, grad=bucket.formula.grad / norm)


def update(buckets: list[Bucket]) -> list[tuple[Bucket, Tensor]]:
    """Update moments and weights. Returns the trust ratios, float64 [parameters], of each bucket that has them."""
    ratios, layer_wise = [], []
    for bucket in buckets:
        if not bucket.group["trust_ratio"]:
            bucket.kernel.step(bucket.tensors, bucket.formula)
        elif bucket.is_fusible:
            ratios.append((bucket, fused_step(bucket)))
        else:
            layer_wise.append(bucket)
    squared_norms = all_reduce([(bucket, update_moments(bucket)) for bucket in layer_wise])
    for bucket, sums in zip(layer_wise, squared_norms, strict=True):
        ratio = trust_ratios(bucket, *sqrt(sums))
        apply_update(bucket, ratio)
        ratios.append((bucket, ratio))
    return ratios


def update_moments(bucket: Bucket) -> Tensor:
    """Squared norms [2, segments] of weights and direction; of weights and gradient if the ratio scales the gradient."""
    if bucket.rule.scales_gradient:  # the moments come after the ratio
        return bucket.kernel.gradient_norms(bucket.tensors, bucket.formula)
    return bucket.kernel.update_moments(bucket.tensors, bucket.formula)


def all_reduce(sums: Sequence[tuple[Bucket, Tensor]]) -> list[Tensor]:
    """Sums of whole parameters [2, parameters] from those of segments: one all-reduce for each process group."""
    by_parameter = [(bucket.process_group, bucket.tensors.segments.sum_by_parameter(s)) for bucket, s in sums]
    return sum_by_process_group(by_parameter)


def trust_ratios(bucket: Bucket, weight_norm: Tensor, other_norm: Tensor) -> Tensor:
    """The rule's ratio within the group's bounds; 1 where a norm is 0."""
    ratio = bucket.rule.trust_ratio(weight_norm, other_norm, bucket.group)
    if bucket.group["trust_bounds"] is not None:
        ratio = ratio.clamp(*bucket.group["trust_bounds"])
    return torch.where((weight_norm == 0) | (other_norm == 0), 1.0, ratio)


def apply_update(bucket: Bucket, ratio: Tensor) -> None:
    """w - lr ratio u, with the weight decay."""
    rates = ratio * learning_rate(bucket.group)
    rates = rates[bucket.tensors.segments.parameter_on(ratio.device)]
    if bucket.rule.scales_gradient:
        bucket.kernel.step(bucket.tensors, bucket.formula, rates)
    else:
        bucket.kernel.apply_update(bucket.tensors, bucket.formula, rates)


def fused_step(bucket: Bucket) -> Tensor:
    """All of the above in one call of the kernel."""
    bounds = bucket.group["trust_bounds"] or (0.0, math.inf)
    assert bucket.kernel.fused_step is not None
    ratio = bucket.kernel.fused_step(bucket.tensors, bucket.formula, float(bucket.group["lr"]), bounds)
    return bucket.tensors.segments.sum_by_parameter(ratio[None])[0]


def global_gradient_norm(buckets: list[Bucket], attachment: Attachment | None) -> float:
    """The norm of all gradients together, over all ranks; 1 where it is 0."""
    if attachment is not None and attachment.gradient_norm is not None:
        return attachment.gradient_norm() or 1.0
    norms = [(bucket, bucket.kernel.gradient_norms(bucket.tensors, bucket.formula)) for bucket in buckets]
    total = sum((s[1].sum() for s in all_reduce(norms)), torch.zeros((), dtype=torch.float64, device="cpu"))
    if attachment is not None and attachment.spread_over is not None:
        total = sum_over_ranks([total], attachment.spread_over)[0]
    return float(sqrt(total)) or 1.0
