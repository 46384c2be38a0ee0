"""Sorts the tensors of a step into buckets, and makes the input of the kernels for each."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bellwether.optimizers import kernels, rounding
from bellwether.optimizers.kernels import reference
from bellwether.optimizers.kernels.interface import Kernel
from bellwether.optimizers.kernels.tensor_list import SegmentTable, TensorList
from bellwether.optimizers.recent import Recent
from bellwether.optimizers.rule import Group, Rule
from bellwether.optimizers.scalars import StepCount
from bellwether.optimizers.sharded import Work
from bellwether.optimizers.shards.exchange import Exchange
from bellwether.optimizers.shards.layout import ShardLayout, all_local, local_gradients
from bellwether.optimizers.step_counts import State, StepCounts
from bellwether.optimizers.update import Bucket
from bellwether.optimizers.weight_decay import with_weight_decay

if TYPE_CHECKING:
    from bellwether.optimizers.base import RuleOptimizer

# Most segment tables kept: gradients that come and go, as of experts, make ever new combinations of tensors.
_MAX_TABLES = 256
_MAX_EXCHANGES = 64  # as these know the slices of all ranks
_PROCESS_GROUP, _DEVICE, _DTYPE, _GRAD_DTYPE = map(attrgetter, ("process_group", "device", "dtype", "grad.dtype"))


class Bucketing:
    """The buckets of each step, and what is found once for the same shards: make a new one for others.

    Args:
        shards: of every tensor that a step may have.
    """

    def __init__(self, shards: Sequence[ShardLayout]) -> None:
        self.shards: Mapping[Tensor, ShardLayout] = {shard.tensor: shard for shard in shards}
        # By the ids of shards, which live as long as this.
        self.tables: Recent[tuple[bool, tuple[int, ...]], tuple[SegmentTable, dict[str, object]]] = Recent(_MAX_TABLES)
        self.exchanges: Recent[tuple[int, ...], Exchange] = Recent(_MAX_EXCHANGES)
        self._step_counts = StepCounts()
        self._last: tuple[list[Tensor], list[ShardLayout]] = ([], [])  # the tensors of the last step, and their shards

    def knows(self, tensors: list[Tensor]) -> bool:
        """Whether each of these has a shard."""
        return self._is_last(tensors) or all(tensor in self.shards for tensor in tensors)

    def buckets(self, work: Work, rule: Rule, optimizer: RuleOptimizer) -> list[Bucket]:
        """Count a step of each tensor, and sort them.

        Args:
            rule: updates them; may be another than the optimizer's own.
            optimizer: has their state and the kernel.
        """
        tensors = [tensor for _, tensor in work]
        shards, states = self._shards_of(tensors), [optimizer.state[tensor] for tensor in tensors]
        if any(tensor.grad.is_sparse for tensor in tensors):  # type: ignore[union-attr]
            raise RuntimeError(
                f"{type(optimizer).__name__} needs dense gradients: build the embedding with sparse=False"
            )
        steps = self._step_counts.advance(tensors, states, [group["capturable"] for group, _ in work])
        # A count on the device is not read: each tensor is a bucket of its own then.
        counts = [id(step) if isinstance(step, Tensor) else step for step in steps]
        weights = all_local(tensors)
        # Columns by map: with thousands of tensors a loop in Python takes longer than their update.
        keys = list(
            zip(
                [id(group) for group, _ in work], counts, map(_PROCESS_GROUP, shards), map(_DEVICE, weights),
                map(_DTYPE, weights), map(_GRAD_DTYPE, tensors), strict=True,
            )
        )  # fmt: skip
        found: dict[Any, list[int]] = {}
        if keys and keys.count(keys[0]) == len(keys):
            found[keys[0]] = list(range(len(keys)))
        else:
            for i, key in enumerate(keys):
                found.setdefault(key, []).append(i)
        return [
            self._bucket(
                optimizer, rule, work[i[0]][0], [shards[j] for j in i], [states[j] for j in i], steps[i[0]]
            )
            for i in found.values()
        ]  # fmt: skip

    def _shards_of(self, tensors: list[Tensor]) -> list[ShardLayout]:
        """The shard of each tensor, found once for the same tensors: to look up a tensor takes as long as its update."""
        if not self._is_last(tensors):
            self._last = (tensors, [self.shards[tensor] for tensor in tensors])
        return self._last[1]

    def _is_last(self, tensors: list[Tensor]) -> bool:
        """Whether these are the tensors of the last step, one by one."""
        return len(tensors) == len(self._last[0]) and all(map(operator.is_, tensors, self._last[0]))

    def _bucket(
        self,
        optimizer: RuleOptimizer,
        rule: Rule,
        group: Group,
        shards: list[ShardLayout],
        states: list[State],
        step: StepCount,
    ) -> Bucket:
        rule, group = rule.of_group(group)
        columns = {name: all_local(_column(optimizer, shards, states, name)) for name in rule.state_names(group)}
        tensors = self._tensor_list(shards, columns, group["trust_ratio"] or optimizer.needs_global_sums)
        call = reference.RuleCall(rule, group, step, -1.0 if group.get("maximize") else 1.0)
        coefficients = None if isinstance(step, Tensor) else rule.coefficients(group, step)
        if isinstance(step, Tensor) and shards[0].process_group is not None:
            raise NotImplementedError(
                f"{optimizer.name} with capturable=True on sharded parameters: write capturable=False"
            )
        kernel: Kernel = reference
        if coefficients is not None:
            kernel = kernels.choose(optimizer.kernel, tensors)
        elif not rule.needs_whole and not isinstance(step, Tensor) and optimizer.kernel not in ("auto", "reference"):
            raise ValueError(
                f"kernel={optimizer.kernel!r}: {optimizer.name} has no compiled kernel; write kernel='auto'"
            )
        wide = None
        if tensors.weights[0].dtype in rounding.SIXTEEN_BITS:
            if group.get("stochastic_rounding") or group.get("kahan_sum"):
                kept = None
                if group.get("kahan_sum"):
                    kept = all_local(_column(optimizer, shards, states, rounding.COMPENSATION))
                tensors, wide = rounding.widened(kernel, tensors, shards, kept)
            else:
                rounding.warn_once(optimizer.name, tensors.weights[0].dtype)
        if kernel is reference or coefficients is None or isinstance(step, Tensor):
            return Bucket(rule, group, shards, tensors, kernel, call, step, states, wide)
        formula = replace(with_weight_decay(coefficients, group, step), grad=call.grad)
        return Bucket(rule, group, shards, tensors, kernel, formula, step, states, wide)

    def _tensor_list(
        self, shards: list[ShardLayout], columns: dict[str, list[Tensor]], by_parameter: bool
    ) -> TensorList:
        key = (by_parameter, tuple(map(id, shards)))
        segments, cache = self.tables.get(key, lambda: (SegmentTable.of(shards, by_parameter), {}))
        tensors = [shard.tensor for shard in shards]
        weights, grads = all_local(tensors), local_gradients(tensors)
        if not all(map(Tensor.is_contiguous, grads)) or not all(map(Tensor.is_contiguous, weights)):
            grads = list(map(_like, grads, weights))
        return TensorList(weights, grads, columns, segments, cache)


def _column(
    optimizer: RuleOptimizer, shards: Sequence[ShardLayout], states: Sequence[State], name: str
) -> list[Tensor]:
    """A state tensor of each shard's tensor. Made where there is none; wide enough where 16 bits are not."""
    try:
        found = [state[name] for state in states]
        if rounding.SIXTEEN_BITS.isdisjoint(map(_DTYPE, found)):
            return found
    except KeyError:  # in the first step of a tensor
        pass
    for shard, state in zip(shards, states, strict=True):
        if name not in state:
            state[name] = optimizer.initial_state(shard.tensor, name)
        elif state[name].dtype in rounding.SIXTEEN_BITS:  # of an older version, or cast by a loader
            state[name] = state[name].to(optimizer.state_dtype(shard.tensor, name))
    return [state[name] for state in states]


def _like(grad: Tensor, weights: Tensor) -> Tensor:
    """A gradient with the memory layout of its weights."""
    if (grad.is_contiguous() and weights.is_contiguous()) or grad.stride() == weights.stride():
        return grad
    return torch.empty_like(weights, dtype=grad.dtype).copy_(grad)
