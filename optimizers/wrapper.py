"""The base of Lookahead, Swats and WeightAverage: an optimizer around another, with the same groups and state."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from bellwether.optimizers.average_swap import AverageSwap
from bellwether.optimizers.sharded import Attachment, Group, ShardedOptimizer, Work
from bellwether.optimizers.shards.layout import ShardLayout


class Wrapper(ShardedOptimizer):
    """Changes the weights before or after the inner optimizer updates them.

    Param groups and state are the inner optimizer's, so that engines, schedulers, `state_dict` and checkpoints see one
    optimizer. A wrapper stores what it needs of a tensor in that tensor's state, with the same layout, so it is sharded,
    offloaded and saved like a moment. All of it exists after the first step: torch's distributed checkpoint loads into the
    state that one step creates. Wrappers can be nested.

    Args:
        base: the inner optimizer. Pass the wrapper to engines and schedulers.
    """

    def __init__(self, base: ShardedOptimizer) -> None:
        if not isinstance(base, ShardedOptimizer):
            raise TypeError(
                f"{type(self).__name__} around {type(base).__name__}: pass one of the optimizers of this package"
            )
        if isinstance(base, AverageSwap) and base.replaces_weights:
            raise TypeError(
                f"{type(self).__name__} around {base.name}: it averages the weights itself, and changes of a wrapper would not "
                "be in its average; use it alone"
            )
        if any(group.get("capturable") for group in base.param_groups):
            raise TypeError(
                f"{type(self).__name__} around {base.name} with capturable=True: wrappers decide by step counts on the host; write "
                "capturable=False"
            )
        self.base = base
        super().__setstate__({})  # torch's hooks; its constructor would create groups and state

    @property
    def param_groups(self) -> list[Group]:
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[Group]) -> None:  # engines assign to it
        self.base.param_groups = groups

    @property
    def state(self) -> Any:
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        return self.base.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base.defaults = defaults

    def __getstate__(self) -> dict[str, Any]:
        hooks = ("_optimizer_", "_zero_grad_", "_warned_")  # torch's, which are not copied
        return {key: value for key, value in self.__dict__.items() if not key.startswith(hooks) and key != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """For pickle and deepcopy, and for torch's load_state_dict, which passes groups and state."""
        if "param_groups" in state:
            self.base.__setstate__(state)
            state = {}
        super().__setstate__(state)

    def add_param_group(self, param_group: Group) -> None:
        self.base.add_param_group(param_group)

    @property
    def name(self) -> str:
        return f"{type(self).__name__}({self.base.name})"

    @property
    def shards(self) -> Sequence[ShardLayout]:
        return self.base.shards

    def shard_of(self, tensor: Tensor) -> ShardLayout:
        return self.base.shard_of(tensor)

    @property
    def given(self) -> Sequence[Tensor]:
        return self.base.given

    def use(self, attachment: Attachment) -> None:
        self.base.use(attachment)

    @property
    def attachment(self) -> Attachment | None:
        return self.base.attachment

    def trust_ratios(self) -> dict[str, float]:
        return self.base.trust_ratios()

    def forget_trust_ratios(self) -> None:
        self.base.forget_trust_ratios()

    def state_tensors(self, group: Group) -> int:
        return self.base.state_tensors(group) + 1

    def whole_state(self, shape: Sequence[int], group: Group) -> dict[str, tuple[int, ...]]:
        return self.base.whole_state(shape, group)

    def state_dtype(self, tensor: Tensor, name: str) -> torch.dtype:
        return self.base.state_dtype(tensor, name)

    options: ClassVar[tuple[str, ...]] = ()  # attributes that a state dict has

    def saved_options(self) -> dict[str, Any]:
        own = {f"{type(self).__name__}.{name}": getattr(self, name) for name in self.options}
        return {**self.base.saved_options(), **own}

    def upgraded_state_dict(self, given: dict[str, Any]) -> dict[str, Any]:
        return self.checked_state_dict(given, set())

    def checked_state_dict(self, given: dict[str, Any], kept: set[str]) -> dict[str, Any]:
        """In addition, take over the options of the saved wrapper, as torch does those of groups."""
        groups = [dict(group) for group in given["param_groups"]]
        for name in self.options:
            key, own = f"{type(self).__name__}.{name}", getattr(self, name)
            saved = [group.pop(key, own) for group in groups]
            if saved and saved[0] != own:
                warnings.warn(
                    f"{type(self).__name__}: {name}={saved[0]!r} from the state dict, not {own!r}", stacklevel=5
                )
                setattr(self, name, saved[0])
        inner: Any = self.base
        return inner.checked_state_dict({**given, "param_groups": groups}, kept | self.own_state_names())

    def scalars(self) -> dict[str, float]:
        return self.base.scalars()

    def load_scalars(self, scalars: dict[str, float]) -> None:
        self.base.load_scalars(scalars)

    @property
    def needs_global_sums(self) -> bool:
        return self.base.needs_global_sums

    @property
    def needs_whole_parameters(self) -> bool:
        return self.base.needs_whole_parameters

    @property
    def max_grad_norm(self) -> float | None:
        return self.base.max_grad_norm

    @property
    def is_partial(self) -> bool:
        return self.base.is_partial

    def mark_partial(self) -> None:
        self.base.mark_partial()

    def update(self, work: Work) -> None:
        self.base.update(work)

    def is_dry_run(self, tensors: list[Tensor]) -> bool:
        return self.base.is_dry_run(tensors)

    def __repr__(self) -> str:
        return f"{type(self).__name__} around {self.base!r}"
