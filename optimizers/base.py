"""The optimizer around an update rule: parameter names, shards, pickling, and state dicts of torch and older versions."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bellwether.optimizers import deprecation, kernels, rounding, step_counts
from bellwether.optimizers.kernels import reference
from bellwether.optimizers.kernels.interface import Kernel
from bellwether.optimizers.kernels.tensor_list import SegmentTable, TensorList
from bellwether.optimizers.recent import Recent
from bellwether.optimizers.rule import Rule
from bellwether.optimizers.scalars import StepCount, place_lr
from bellwether.optimizers.sharded import Attachment, Group, ShardedOptimizer, Work
from bellwether.optimizers.shards import dtensor, zero_redundancy
from bellwether.optimizers.shards.exchange import Exchange
from bellwether.optimizers.shards.layout import ShardLayout, all_local, local, local_gradients
from bellwether.optimizers.state_dicts import (
    ADDED_OPTIONS,
    check_state,
    complete,
    refuse_misspelled_keys,
    refuse_unknown_keys,
    upgraded,
)
from bellwether.optimizers.step_counts import StepCounts
from bellwether.optimizers.untrained import refuse_replaced
from bellwether.optimizers.update import Bucket, scale_gradients, update
from bellwether.optimizers.validation import check_torch_flags, validate
from bellwether.optimizers.weight_decay import check_peak_lr, infer_peak_lr, with_weight_decay
from bellwether.optimizers.whole import update_whole

# Most segment tables kept: gradients that come and go, as of experts, make ever new combinations of tensors.
_MAX_TABLES = 256
_MAX_EXCHANGES = 64  # as these know the slices of all ranks
_PROCESS_GROUP, _DEVICE, _DTYPE, _GRAD_DTYPE = map(attrgetter, ("process_group", "device", "dtype", "grad.dtype"))


class RuleOptimizer(Rule, ShardedOptimizer):
    """w <- w - lr trust_ratio (direction(g) + weight decay). Subclasses are the rules: see `Rule`.

    State of each tensor: ``step`` (float32 scalar, on the CPU unless ``capturable``), and the moments under torch's names, with its shape.
    """

    def __init__(
        self,
        params: Any,
        *,
        kernel: str = "auto",
        prenormalize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **defaults: Any,
    ) -> None:
        kernels.check(kernel)
        check_torch_flags(kernel, foreach=foreach, capturable=capturable, differentiable=differentiable, fused=fused)
        if prenormalize and defaults.get("max_grad_norm") is not None:
            raise ValueError("prenormalize=True with max_grad_norm: the norm is 1 already; write one of them")
        self.kernel = kernel
        defaults = {**ADDED_OPTIONS, **defaults, "prenormalize": prenormalize, "capturable": capturable}
        self._is_part = False
        self._given: list[Tensor] = []
        if dist.is_available() and dist.is_initialized():
            zero_redundancy.watch()
        self._reset()
        validate(defaults, self.weight_decay_modes)
        super().__init__(params, defaults)

    def _reset(self) -> None:
        self._names: dict[Tensor, str] = {}  # of the parameters as given, until an engine replaces them
        self._shards: dict[Tensor, ShardLayout] | None = None
        self._tables: Recent[tuple[bool, tuple[int, ...]], tuple[SegmentTable, dict[str, object]]] = Recent(_MAX_TABLES)
        self._ratios: dict[str, tuple[Tensor, int]] = {}  # all ratios of a bucket are one tensor, on the device
        self._exchanges: Recent[tuple[int, ...], Exchange] = Recent(_MAX_EXCHANGES)
        self._attachment: Attachment | None = None
        self._steps_seen = 0
        self._step_counts = StepCounts()
        # The tensors of the last step, their shards, and the table that these are from.
        self._known: tuple[list[Tensor], list[ShardLayout], object] = ([], [], None)

    # --- pickling, and state dicts of torch and of older versions ---

    def __getstate__(self) -> dict[str, Any]:
        own_state = {"kernel": self.kernel, "_is_part": self._is_part}
        own_state["attached"] = self._attachment is not None
        return {**super().__getstate__(), **own_state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """For pickle and deepcopy, and for torch's load_state_dict, which leaves the tensors in place."""
        attached = state.pop("attached", None)
        prenormalize = state.pop("prenormalize", None)  # of a copy by an older version
        super().__setstate__(state)
        if prenormalize is not None:
            self.defaults["prenormalize"] = prenormalize
            for group in self.param_groups:
                group["prenormalize"] = prenormalize
        self._upgrade_torch_state()
        if attached is None:
            return
        self._reset()
        self._given = []
        if not attached:  # an engine's shards cannot be copied: step() asks for attach again
            for index, group in enumerate(self.param_groups):
                self._register(group, index)

    def _upgrade_torch_state(self) -> None:
        """Complete groups and state of torch's optimizer of the same name, or of an older version of this one."""
        self._step_counts = StepCounts()
        deprecation.upgrade(self.defaults, warn=False)
        for key, value in ADDED_OPTIONS.items():
            self.defaults.setdefault(key, value)
        for group in self.param_groups:
            deprecation.upgrade(group, warn=False)
            complete(group, self.defaults)
            infer_peak_lr(group)
        for group in self.param_groups:
            place_lr(group)
        step_counts.place(self.state, self.param_groups)

    # --- parameters and their shards ---

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        deprecation.upgrade(param_group)
        if self._attachment is not None:
            raise RuntimeError(
                f"{type(self).__name__}.add_param_group() after attach: the engine has laid out its tensors, and would not train "
                "the new group. Give all groups to the optimizer before the engine is built (a group that begins later: lr=0.0)"
            )
        refuse_unknown_keys(param_group, self.defaults, type(self).__name__)
        scale = param_group.pop("lr_scale", 1.0)  # of `groups`; not kept, as some schedulers would apply it again
        for key in ("lr", "peak_lr"):
            if scale != 1 and key not in param_group and self.defaults[key] is not None:
                param_group[key] = self.defaults[key] * scale
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            validate(group, self.weight_decay_modes, inherited_bounds=self.defaults["trust_bounds"])
            for key in self.unsupported:
                if group[key]:
                    raise ValueError(f"{key}=True: {self.name} does not have it; omit it")
        except ValueError:
            self.param_groups.pop()  # a caller that catches the error must not train it
            raise
        infer_peak_lr(group)
        place_lr(group)
        if group.get("always_adapt") is False and not group["weight_decay"]:  # apex's and timm's rule
            group["trust_ratio"] = False
        self._register(group, len(self.param_groups) - 1)

    def _register(self, group: Group, index: int) -> None:
        """Remember the parameters as given: an engine that shards puts other tensors in their place."""
        names = group.get("param_names", ())
        if len(names) != len(group["params"]):  # an engine that takes a part of the group leaves all names in it
            names = [f"{index}.{i}" for i in range(len(group["params"]))]
        taken_names = set(self._names.values())  # two models may have the same names
        names = [f"{index}.{name}" if name in taken_names else name for name in names]
        self._names.update(zip(group["params"], names, strict=True))
        self._given += group["params"]
        self._shards = None
        self._tables.clear()  # their keys are ids of shards, which new shards may reuse
        self._exchanges.clear()

    @property
    def shards(self) -> Sequence[ShardLayout]:
        return list(self._shard_by_tensor.values())

    def shard_of(self, tensor: Tensor) -> ShardLayout:
        return self._shard_by_tensor[tensor]

    @property
    def _shard_by_tensor(self) -> dict[Tensor, ShardLayout]:
        # Computed late: all parameters together decide over which ranks DTensors are summed.
        if self._shards is None:
            self._shards = {shard.tensor: shard for shard in dtensor.shards(self._names)}
        return self._shards

    @property
    def given(self) -> Sequence[Tensor]:
        return list(self._given)

    def use(self, attachment: Attachment) -> None:
        if any(group["capturable"] for group in self.param_groups):
            raise ValueError(
                "attach: capturable=True, and an engine calls step() outside of a graph: write capturable=False"
            )
        self._reset()
        self._shards = {shard.tensor: shard for shard in attachment.shards}
        self._attachment = attachment

    @property
    def attachment(self) -> Attachment | None:
        return self._attachment

    @property
    def prenormalize(self) -> bool:
        """Whether gradients are divided by their global norm: an option of all groups together."""
        return any(group.get("prenormalize", False) for group in self.param_groups)

    def upgraded_state_dict(self, given: dict[str, Any]) -> dict[str, Any]:
        return self.checked_state_dict(given, set())

    def checked_state_dict(self, given: dict[str, Any], kept: set[str]) -> dict[str, Any]:
        """A state dict in the form of this version. ``kept`` are the state tensors of wrappers."""
        name = type(self).__name__
        state_dict = upgraded(given, self.param_groups, self.defaults, name)
        check_state(state_dict, lambda group: set(self.state_names(group)), kept, name)
        return state_dict

    @property
    def needs_global_sums(self) -> bool:
        return self.prenormalize or self.max_grad_norm is not None

    @property
    def needs_whole_parameters(self) -> bool:
        rules = (self.of_group(group) for group in self.param_groups)
        return any(rule.needs_whole or group["trust_ratio"] for rule, group in rules)

    @property
    def max_grad_norm(self) -> float | None:
        """The upper bound of the global gradient norm, the same in all groups; None: gradients are not clipped."""
        found = {group.get("max_grad_norm") for group in self.param_groups}
        if len(found) > 1:
            raise ValueError(
                f"max_grad_norm is {' and '.join(sorted(map(str, found)))} in different param groups: it bounds the norm of all "
                "gradients together; write one value in all groups"
            )
        return found.pop() if found else None

    @property
    def is_partial(self) -> bool:
        return self._is_part and self._attachment is None

    def mark_partial(self) -> None:
        self._is_part = True

    def is_dry_run(self, tensors: list[Tensor]) -> bool:
        if self._attachment is not None:
            if not self._is_known(tensors) and not all(tensor in self._shard_by_tensor for tensor in tensors):
                raise RuntimeError(
                    f"{type(self).__name__}.step() on tensors that came after attach: the engine has another layout now. Build it again "
                    "with all param groups, and call optimizers.attach(engine)"
                )
            return False
        if self._is_known(tensors) or all(tensor in self._names for tensor in tensors):
            return False
        # DeepSpeed's 16-bit stage-0 wrapper calls step() with zero gradients during its construction.
        if not any(tensor.grad.any() for tensor in tensors):  # type: ignore[union-attr]
            return True
        raise RuntimeError(
            f"{type(self).__name__}.step() on tensors that an engine put in place of the parameters: call "
            "bellwether.optimizers.attach(engine) once, right after deepspeed.initialize(). Without it the optimizer cannot know "
            "which parameter each element belongs to, and trust ratios and state would be wrong."
        )

    def _refuse_untrained(self) -> None:
        if self._attachment is not None:
            if self._attachment.unfrozen is not None and (names := self._attachment.unfrozen()):
                raise RuntimeError(
                    f"{', '.join(names[:3])} ({len(names)} parameters) were frozen when the engine was built, and it would not "
                    "train them: unfreeze parameters before deepspeed.initialize(), or build the engine again"
                )
            return
        self._steps_seen += 1
        if self._steps_seen & (self._steps_seen - 1) == 0 and self._steps_seen <= 16:  # 1, 2, 4, 8, 16
            refuse_replaced(self.param_groups, self.state, self._names)

    # --- the update ---

    def update(self, work: Work, rule: Rule | None = None) -> None:
        """Update these tensors, by another rule if one is given."""
        self._refuse_untrained()
        for index, group in enumerate(self.param_groups):
            deprecation.upgrade(group, warn=False)  # an engine's load may put keys of older versions there
            complete(group, self.defaults)
            refuse_misspelled_keys(group, frozenset(self.defaults), type(self).__name__)
            if not group["capturable"]:  # it would read the rate on the host
                check_peak_lr(group, index)
        if self._attachment is not None:
            self._check_groups()
        buckets = self._buckets(work, rule or self)
        whole = [bucket for bucket in buckets if bucket.rule.needs_whole]
        apart = [bucket for bucket in buckets if not bucket.rule.needs_whole]
        scale_gradients(buckets, self._attachment, self.prenormalize, self.max_grad_norm)
        for bucket, ratios in update(apart):
            names = [p.name for shard in bucket.shards for p in shard.parameters]
            self._ratios.update((name, (ratios, i)) for i, name in enumerate(names))
        update_whole(whole, self._exchanges)
        for bucket in buckets:
            if bucket.wide is not None:
                assert isinstance(bucket.step, int)  # `validate` refuses the options with capturable
                rounding.round_back(bucket.kernel, bucket.wide, bucket.group.get("rounding_seed", 0), bucket.step)

    def _buckets(self, work: Work, rule: Rule) -> list[Bucket]:
        tensors = [tensor for _, tensor in work]
        shards, states = self._shards_of(tensors), [self.state[tensor] for tensor in tensors]
        if any(tensor.grad.is_sparse for tensor in tensors):  # type: ignore[union-attr]
            raise RuntimeError(f"{type(self).__name__} needs dense gradients: build the embedding with sparse=False")
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
                rule, work[group[0]][0], [shards[i] for i in group], [states[i] for i in group], steps[group[0]]
            )
            for group in found.values()
        ]

    def _shards_of(self, tensors: list[Tensor]) -> list[ShardLayout]:
        """The shard of each tensor, found once for the same tensors: to look up a tensor takes as long as its update."""
        shard_by_tensor = self._shard_by_tensor
        if not self._is_known(tensors) or self._known[2] is not shard_by_tensor:
            self._known = (tensors, [shard_by_tensor[tensor] for tensor in tensors], shard_by_tensor)
        return self._known[1]

    def _is_known(self, tensors: list[Tensor]) -> bool:
        """Whether these are the tensors of the last step, one by one."""
        return len(tensors) == len(self._known[0]) and all(map(operator.is_, tensors, self._known[0]))

    def _bucket(
        self, rule: Rule, group: Group, shards: list[ShardLayout], states: list[dict[str, Any]], step: StepCount
    ) -> Bucket:
        rule, group = rule.of_group(group)
        by_parameter = group["trust_ratio"] or self.needs_global_sums
        tensors = self._tensor_list(shards, states, rule.state_names(group), by_parameter)
        call = reference.RuleCall(rule, group, step, -1.0 if group.get("maximize") else 1.0)
        coefficients = None if isinstance(step, Tensor) else rule.coefficients(group, step)
        if isinstance(step, Tensor) and shards[0].process_group is not None:
            raise NotImplementedError(f"{self.name} with capturable=True on sharded parameters: write capturable=False")
        kernel: Kernel = reference
        if coefficients is not None:
            kernel = kernels.choose(self.kernel, tensors)
        elif not rule.needs_whole and not isinstance(step, Tensor) and self.kernel not in ("auto", "reference"):
            raise ValueError(f"kernel={self.kernel!r}: {self.name} has no compiled kernel; write kernel='auto'")
        wide = None
        if tensors.weights[0].dtype in rounding.SIXTEEN_BITS:
            if group.get("stochastic_rounding") or group.get("kahan_sum"):
                kept = None
                if group.get("kahan_sum"):
                    kept = [local(self._state(shard.tensor, rounding.COMPENSATION)) for shard in shards]
                tensors, wide = rounding.widened(kernel, tensors, shards, kept)
            else:
                rounding.warn_once(self.name, tensors.weights[0].dtype)
        if kernel is reference or coefficients is None or isinstance(step, Tensor):
            return Bucket(rule, group, shards, tensors, kernel, call, step, states, wide)
        formula = replace(with_weight_decay(coefficients, group, step), grad=call.grad)
        return Bucket(rule, group, shards, tensors, kernel, formula, step, states, wide)

    def _check_groups(self) -> None:
        first = [group["param_names"][0] for group in self.param_groups if group.get("param_names")]
        if len(set(first)) < len(first):
            raise RuntimeError(
                "several param groups have the same param_names: DeepSpeed's universal checkpoint at ZeRO stage 3 has "
                "given all groups the options of the first one, its weight decay and trust ratio too. Keep the options "
                "before load_checkpoint() and update() each group with its own after it"
            )

    def _tensor_list(
        self, shards: list[ShardLayout], states: list[dict[str, Any]], names: tuple[str, ...], by_parameter: bool
    ) -> TensorList:
        key = (by_parameter, tuple(map(id, shards)))
        segments, cache = self._tables.get(key, lambda: (SegmentTable.of(shards, by_parameter), {}))
        tensors = [shard.tensor for shard in shards]
        columns = {name: all_local(self._column(tensors, states, name)) for name in names}
        weights, grads = all_local(tensors), local_gradients(tensors)
        if not all(map(Tensor.is_contiguous, grads)) or not all(map(Tensor.is_contiguous, weights)):
            grads = list(map(_like, grads, weights))
        return TensorList(weights, grads, columns, segments, cache)

    def _column(self, tensors: list[Tensor], states: list[dict[str, Any]], name: str) -> list[Tensor]:
        """A moment of each tensor, as `_state`."""
        try:
            found = [state[name] for state in states]
        except KeyError:  # in the first step of a tensor
            return [self._state(tensor, name) for tensor in tensors]
        if rounding.SIXTEEN_BITS.isdisjoint(map(_DTYPE, found)):
            return found
        return [self._state(tensor, name) for tensor in tensors]

    def _state(self, tensor: Tensor, name: str) -> Tensor:
        state = self.state[tensor]
        if name not in state:
            state[name] = torch.zeros_like(
                tensor, dtype=self.state_dtype(tensor, name), memory_format=torch.preserve_format
            )
        elif state[name].dtype in rounding.SIXTEEN_BITS:  # of an older version, or cast by a loader
            state[name] = state[name].to(self.state_dtype(tensor, name))
        return state[name]

    # --- queries ---

    def trust_ratios(self) -> dict[str, float]:
        tensors = {id(ratios): ratios for ratios, _ in self._ratios.values()}
        values = {key: ratios.tolist() for key, ratios in tensors.items()}
        return {name: values[id(ratios)][i] for name, (ratios, i) in self._ratios.items()}

    def forget_trust_ratios(self) -> None:
        self._ratios.clear()

    def state_tensors(self, group: Group) -> int:
        return len(self.state_names(group))


def _like(grad: Tensor, weights: Tensor) -> Tensor:
    """A gradient with the memory layout of its weights."""
    if (grad.is_contiguous() and weights.is_contiguous()) or grad.stride() == weights.stride():
        return grad
    return torch.empty_like(weights, dtype=grad.dtype).copy_(grad)
