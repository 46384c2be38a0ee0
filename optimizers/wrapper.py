"""What Lookahead, Swats and WeightAverage share: an optimizer around another, with the same groups and state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bellwether.optimizers.sharded import Attachment, Group, ShardedOptimizer, Work
from bellwether.optimizers.shards.layout import ShardLayout


class Wrapper(ShardedOptimizer):
    """Does something to the weights before or after the optimizer inside has moved them.

    Param groups and state are the inner optimizer's, so that engines, schedulers, `state_dict` and checkpoints see one
    optimizer. What a wrapper remembers of a tensor lies in that tensor's state, laid out as the tensor: thus it is
    sharded, offloaded and saved like a moment. Wrappers wrap wrappers.

    Args:
        base: the optimizer inside. Give engines and schedulers the wrapper.
    """

    def __init__(self, base: ShardedOptimizer) -> None:
        if not isinstance(base, ShardedOptimizer):
            raise TypeError(
                f"{type(self).__name__} around {type(base).__name__}: give one of the optimizers of this package"
            )
        self.base = base
        super().__setstate__({})  # torch's hooks; its constructor would make groups and state anew

    @property
    def param_groups(self) -> list[Group]:
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[Group]) -> None:  # engines assign it
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
        hooks = ("_optimizer_", "_zero_grad_", "_warned_")  # torch's own, which do not travel
        return {key: value for key, value in self.__dict__.items() if not key.startswith(hooks) and key != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """For pickle and deepcopy, and for torch's load_state_dict, which hands over groups and state."""
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

    def use(self, attachment: Attachment) -> None:
        self.base.use(attachment)

    @property
    def attachment(self) -> Attachment | None:
        return self.base.attachment

    def trust_ratios(self) -> dict[str, float]:
        return self.base.trust_ratios()

    def scalars(self) -> dict[str, float]:
        return self.base.scalars()

    def load_scalars(self, scalars: dict[str, float]) -> None:
        self.base.load_scalars(scalars)

    @property
    def sums_over_all(self) -> bool:
        return self.base.sums_over_all

    @property
    def is_part(self) -> bool:
        return self.base.is_part

    def _update(self, work: Work) -> None:
        self.base._update(work)

    def _is_rehearsal(self, tensors: list[Tensor]) -> bool:
        return self.base._is_rehearsal(tensors)

    def __repr__(self) -> str:
        return f"{type(self).__name__} around {self.base!r}"
