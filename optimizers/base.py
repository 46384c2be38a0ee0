"""The optimizer around an update rule: parameter names, shards, pickling, and state dicts of torch and older versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bellwether.optimizers import deprecation, kernels, rounding, step_counts
from bellwether.optimizers.bucketing import Bucketing
from bellwether.optimizers.rule import Rule
from bellwether.optimizers.scalars import place_lr
from bellwether.optimizers.sharded import Attachment, Group, ShardedOptimizer, Work
from bellwether.optimizers.shards import dtensor, zero_redundancy
from bellwether.optimizers.shards.layout import ShardLayout
from bellwether.optimizers.state_dicts import (
    ADDED_OPTIONS,
    check_state,
    complete,
    refuse_misspelled_keys,
    refuse_unknown_keys,
    upgraded,
)
from bellwether.optimizers.untrained import refuse_replaced
from bellwether.optimizers.update import Bucket, scale_gradients, update
from bellwether.optimizers.validation import check_torch_flags, validate
from bellwether.optimizers.weight_decay import check_peak_lr, infer_peak_lr
from bellwether.optimizers.whole_parameters import update_whole


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
        self._buckets: Bucketing | None = None
        self._ratios: dict[str, tuple[Tensor, int]] = {}  # all ratios of a bucket are one tensor, on the device
        self._attachment: Attachment | None = None
        self._steps_seen, self._has_trained = 0, False

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
        self._buckets = None

    @property
    def shards(self) -> Sequence[ShardLayout]:
        return list(self._bucketing.shards.values())

    def shard_of(self, tensor: Tensor) -> ShardLayout:
        return self._bucketing.shards[tensor]

    @property
    def _bucketing(self) -> Bucketing:
        # Made late: all parameters together decide over which ranks DTensors are summed.
        if self._buckets is None:
            self._buckets = Bucketing(dtensor.shards(self._names))
        return self._buckets

    @property
    def given(self) -> Sequence[Tensor]:
        return list(self._given)

    def use(self, attachment: Attachment) -> None:
        if any(group["capturable"] for group in self.param_groups):
            raise ValueError(
                "attach: capturable=True, and an engine calls step() outside of a graph: write capturable=False"
            )
        self._reset()
        self._buckets = Bucketing(attachment.shards)
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
            if not self._bucketing.knows(tensors):
                raise RuntimeError(
                    f"{type(self).__name__}.step() on tensors that came after attach: the engine has another layout now. Build it again "
                    "with all param groups, and call optimizers.attach(engine)"
                )
            return False
        if (self._buckets is not None and self._buckets.knows(tensors)) or all(map(self._names.__contains__, tensors)):
            return False
        # DeepSpeed's 16-bit stage-0 wrapper calls step() with zero gradients during its construction.
        if not any(tensor.grad.any() for tensor in tensors):  # type: ignore[union-attr]
            return True
        raise RuntimeError(
            f"{type(self).__name__}.step() on tensors that an engine put in place of the parameters: call "
            "bellwether.optimizers.attach(engine) once, right after deepspeed.initialize(). Without it the optimizer cannot know "
            "which parameter each element belongs to, and trust ratios and state would be wrong."
        )

    def _refuse_untrained(self, work: Work) -> None:
        if self._attachment is not None:
            if self._attachment.unfrozen is not None and (names := self._attachment.unfrozen()):
                raise RuntimeError(
                    f"{', '.join(names[:3])} ({len(names)} parameters) were frozen when the engine was built, and it would not "
                    "train them: unfreeze parameters before deepspeed.initialize(), or build the engine again"
                )
            return
        self._steps_seen += 1
        self._has_trained |= bool(work)
        if self._steps_seen & (self._steps_seen - 1) == 0 and self._steps_seen <= 16:  # 1, 2, 4, 8, 16
            refuse_replaced(self.param_groups, self.state, self._names, has_trained=self._has_trained)

    # --- the update ---

    def update(self, work: Work, rule: Rule | None = None) -> None:
        """Update these tensors, by another rule if one is given."""
        buckets = self.prepare(work, rule)
        self.update_buckets(buckets)
        self.round(buckets)

    def prepare(self, work: Work, rule: Rule | None = None) -> list[Bucket]:
        """Check groups, count the step, and make fp32 copies of 16-bit weights that are rounded by an option."""
        self._refuse_untrained(work)
        for index, group in enumerate(self.param_groups):
            deprecation.upgrade(group, warn=False)  # an engine's load may put keys of older versions there
            complete(group, self.defaults)
            refuse_misspelled_keys(group, frozenset(self.defaults), type(self).__name__)
            if not group["capturable"]:  # it would read the rate on the host
                check_peak_lr(group, index)
        if self._attachment is not None:
            self._check_groups()
        return self._bucketing.buckets(work, rule or self, self)

    def update_buckets(self, buckets: list[Bucket]) -> None:
        """Update moments and weights, or the fp32 copies of these."""
        whole = [bucket for bucket in buckets if bucket.rule.needs_whole]
        apart = [bucket for bucket in buckets if not bucket.rule.needs_whole]
        scale_gradients(buckets, self._attachment, self.prenormalize, self.max_grad_norm)
        for bucket, ratios in update(apart):
            names = [p.name for shard in bucket.shards for p in shard.parameters]
            self._ratios.update((name, (ratios, i)) for i, name in enumerate(names))
        update_whole(whole, self._bucketing.exchanges)

    def round(self, buckets: list[Bucket]) -> None:
        """Round the fp32 copies to the weights."""
        for bucket in buckets:
            if bucket.wide is not None:
                assert isinstance(bucket.step, int)  # `validate` refuses the options with capturable
                rounding.round_back(bucket.kernel, bucket.wide, bucket.group.get("rounding_seed", 0), bucket.step)

    def _check_groups(self) -> None:
        first = [group["param_names"][0] for group in self.param_groups if group.get("param_names")]
        if len(set(first)) < len(first):
            raise RuntimeError(
                "several param groups have the same param_names: DeepSpeed's universal checkpoint at ZeRO stage 3 has "
                "given all groups the options of the first one, its weight decay and trust ratio too. Keep the options "
                "before load_checkpoint() and update() each group with its own after it"
            )

    def initial_state(self, tensor: Tensor, name: str) -> Tensor:
        """A state tensor of `state_names` before the first step."""
        dtype = self.state_dtype(tensor, name)
        return torch.zeros_like(tensor, dtype=dtype, memory_format=torch.preserve_format)

    # --- queries ---

    def trust_ratios(self) -> dict[str, float]:
        tensors = {id(ratios): ratios for ratios, _ in self._ratios.values()}
        values = {key: ratios.tolist() for key, ratios in tensors.items()}
        return {name: values[id(ratios)][i] for name, (ratios, i) in self._ratios.items()}

    def forget_trust_ratios(self) -> None:
        self._ratios.clear()

    def state_tensors(self, group: Group) -> int:
        return len(self.state_names(group))
