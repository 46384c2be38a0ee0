"""The interface of an update rule: one optimizer's formula, as code on the tensors of one parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from bellwether.optimizers import weight_decay
from bellwether.optimizers.kernels.coefficients import Coefficients
from bellwether.optimizers.scalars import Number, learning_rate

Group = dict[str, Any]  # of torch's param_groups
State = dict[str, Tensor]  # of one parameter, by the names of `state_names`


class Rule:
    """One update of one parameter. ``kernel="reference"`` runs this code; compiled kernels are tested against it.

    `optimizers.update` calls the methods in this order, for weights ``w`` with gradient ``g``::

        g = gradient(w, g)                                        in mode l2: g + weight_decay w
        update_moments(g)                                         in place
        u = direction(w, g)                                       where the weights go down
        ratio = trust_ratio(||w||, ||u||)                         with trust_ratio=True; norms of whole parameters
        apply_update(w, lr ratio u)                               in place, with the weight decay

    A subclass defines `state_names`, `update_moments` and `direction`. All tensors of a parameter have its shape, or are
    the same slice of it: under an engine, ``w`` is what one rank holds. Only `trust_ratio` may depend on the whole.
    """

    weight_decay_modes: ClassVar[tuple[str, ...]] = ("l2", "decoupled", "independent", "prox")
    unsupported: ClassVar[tuple[str, ...]] = ()  # options of all rules that this one cannot have
    # Whether the trust ratio scales the gradient before it enters the momentum, as in LARS, and not the update.
    scales_gradient: ClassVar[bool] = False
    # Whether `trust_ratio` is ||w|| / ||u||, which the fused step of a compiled kernel computes.
    is_norm_ratio: ClassVar[bool] = True
    # Whether the update is `whole_direction`, which no rank can compute from its slice. It has no trust ratio then.
    needs_whole: ClassVar[bool] = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "trust_ratio" in cls.__dict__ and "is_norm_ratio" not in cls.__dict__:
            cls.is_norm_ratio = False

    def of_group(self, group: Group) -> tuple[Rule, Group]:
        """The rule that updates a group, and the group's options by the names that this rule has for them."""
        return self, group

    def state_names(self, group: Group) -> tuple[str, ...]:
        """Names of the state tensors of a parameter, which begin as zeros. torch's names where torch has them."""
        raise NotImplementedError

    def rate(self, group: Group) -> Number:
        """The factor of the direction in the update."""
        return learning_rate(group)

    def gradient(self, w: Tensor, g: Tensor, rate: Number, group: Group) -> Tensor:
        """The gradient that the rule works on. Leaves ``g`` as it is.

        Args:
            rate: lr, times the trust ratio where that scales the gradient.
        """
        return weight_decay.add_to_gradient(g, w, group)

    def update_moments(self, g: Tensor, state: State, group: Group, step: Number) -> None:
        """Update the state in place. ``step`` counts from 1. With ``capturable`` it is a tensor: see `scalars`."""
        raise NotImplementedError

    def direction(self, w: Tensor, g: Tensor, state: State, group: Group, step: Number) -> Tensor:
        """The direction of the update, after `update_moments`. Changes nothing; may be one of the tensors given."""
        raise NotImplementedError

    def metric(self, scale: Number, state: State, group: Group, step: Number) -> Tensor:
        """``scale / D`` in new memory, D being what the direction divides m^ by. For weight_decay_mode="prox-metric"."""
        raise NotImplementedError

    def whole_direction(self, direction: Tensor, group: Group) -> Tensor:
        """The direction of a whole parameter from what `direction` returned for its slices, of the same shape and dtype.

        With `needs_whole`: called once a parameter in its process group. ``direction`` may be overwritten.
        """
        raise NotImplementedError

    def direction_with_state(self, direction: Tensor, state: State, group: Group, step: Number) -> Tensor:
        """`whole_direction` of a rule that keeps state of whole parameters, on parameters that are not sharded.

        Args:
            state: all that the optimizer keeps of the tensor, to be changed in place.
        """
        return self.whole_direction(direction, group)

    def whole_dtype(self, group: Group) -> torch.dtype | None:
        """The dtype that `whole_direction` computes in, and that directions travel in; None: that of the state."""
        return torch.float32

    def whole_cost(self, shape: Sequence[int]) -> float:
        """The cost of `whole_direction`, in any unit, by which parameters are distributed over ranks."""
        return float(math.prod(shape))

    def whole_scale(self, shape: Sequence[int], group: Group) -> float:
        """A further factor of the whole direction in the update."""
        return 1.0

    def trust_ratio(self, weight_norm: Tensor, other_norm: Tensor, group: Group) -> Tensor:
        """The trust ratios of parameters, float64 [parameters].

        Bounds are applied afterwards, and the ratio is 1 where a norm is 0.

        Args:
            other_norm: of the direction, or of the gradient if `scales_gradient`.
        """
        return weight_norm / other_norm

    def apply_update(self, w: Tensor, update: Tensor, state: State, group: Group, step: Number) -> None:
        """Subtract the update from the weights in place, with the weight decay before or after it.

        Args:
            update: lr times trust ratio times direction.
        """
        rate = self.rate(group)
        weight_decay.shrink(w, group, rate)  # decoupled: (1 - lr weight_decay) w
        w.sub_(update)
        weight_decay.prox(w, group)
        if weight_decay.has_metric(group):
            w.div_(self.metric(rate * group["weight_decay"], state, group, step).add_(1))

    def coefficients(self, group: Group, step: int) -> Coefficients | None:
        """The same formula in the numbers of the compiled kernels, without weight decay; None where they lack it."""
        return None
