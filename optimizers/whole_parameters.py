"""The update of rules whose direction is a function of a whole parameter, which no rank may hold (`Rule.needs_whole`)."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bellwether.optimizers.kernels import reference
from bellwether.optimizers.kernels.reference import RuleCall
from bellwether.optimizers.recent import Recent
from bellwether.optimizers.rule import Rule
from bellwether.optimizers.scalars import learning_rate
from bellwether.optimizers.shards.exchange import Exchange, Key
from bellwether.optimizers.shards.layout import ShardLayout
from bellwether.optimizers.update import Bucket


@dataclass
class _Part:
    """One shard of a bucket: this rank's elements, and its direction as it travels."""

    bucket: Bucket
    shard: ShardLayout
    state: dict[str, Tensor]  # all that the optimizer keeps of the tensor
    direction: Tensor  # flat; `update_whole` puts the whole parameter's in its place


def update_whole(buckets: Sequence[Bucket], exchanges: Recent[tuple[int, ...], Exchange]) -> None:
    """Update moments and weights. Collectives: two all-to-alls for each chunk of each process group."""
    parts = [part for bucket in buckets for part in _directions(bucket)]
    together: dict[tuple[object, ...], list[_Part]] = defaultdict(list)
    for part in parts:
        together[part.shard.process_group, part.direction.dtype, part.direction.device].append(part)
    for some in together.values():
        if some[0].shard.process_group is None:
            for part in some:
                part.direction = _whole(part)
            continue
        shards, rule = [part.shard for part in some], some[0].bucket.rule
        exchange = exchanges.get(tuple(map(id, shards)), functools.partial(_exchange, shards, rule))
        exchange.run([part.direction for part in some], functools.partial(_of_owner, some))
    for bucket in buckets:
        _apply(bucket, [part for part in parts if part.bucket is bucket])


def _exchange(shards: Sequence[ShardLayout], rule: Rule) -> Exchange:
    return Exchange(shards, lambda parameter: rule.whole_cost(parameter.shape))


def _directions(bucket: Bucket) -> list[_Part]:
    """Update the moments. Returns the directions of what this rank holds, in the dtype that the rule computes in."""
    call, parts = bucket.formula, []
    assert isinstance(call, RuleCall)
    segments = zip(bucket.shards, bucket.states, reference.segments(bucket.tensors), strict=True)
    for shard, kept, (w, g, state) in segments:
        g = call.gradient(w, g, learning_rate(call.group))
        call.rule.update_moments(g, state, call.group, call.step)
        direction = call.direction(w, g, state)
        dtype = call.rule.whole_dtype(call.group) or torch.promote_types(w.dtype, torch.float32)
        parts.append(_Part(bucket, shard, kept, direction.to(dtype).reshape(-1)))
    return parts


def _whole(part: _Part) -> Tensor:
    group, parameter = part.bucket.group, part.shard.parameters[0]
    direction = part.direction.view(parameter.shape)
    return part.bucket.rule.direction_with_state(direction, part.state, group, part.bucket.step).reshape(-1)


def _of_owner(parts: Sequence[_Part], direction: Tensor, key: Key) -> Tensor:
    part, parameter = parts[key[0]], parts[key[0]].shard.parameters[key[1]]
    return part.bucket.rule.whole_direction(direction.view(parameter.shape), part.bucket.group).reshape(-1)


def _apply(bucket: Bucket, parts: Sequence[_Part]) -> None:
    rule, group = bucket.rule, bucket.group
    rate = rule.rate(group)
    for part, (w, _, state) in zip(parts, reference.segments(bucket.tensors), strict=True):
        update = part.direction.to(torch.promote_types(w.dtype, torch.float32), copy=True)
        for offset, length, index in part.shard.segments():
            update[offset : offset + length] *= rate * rule.whole_scale(part.shard.parameters[index].shape, group)
        rule.apply_update(w, update.view(w.shape), state, group, bucket.step)
