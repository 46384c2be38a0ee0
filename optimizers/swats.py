"""SWATS: switching from Adam to SGD (Keskar and Socher 2017, arXiv 1712.07628, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bellwether.optimizers.adamw import AdamW
from bellwether.optimizers.base import RuleOptimizer
from bellwether.optimizers.kernels.coefficients import Coefficients
from bellwether.optimizers.rule import Rule, State
from bellwether.optimizers.scalars import Number
from bellwether.optimizers.sharded import Attachment, Group, Work
from bellwether.optimizers.shards.layout import dot, local, local_gradient, sum_by_process_group, sum_over_ranks
from bellwether.optimizers.update import Bucket
from bellwether.optimizers.wrapper import Wrapper

_GAMMA, _STEPS, _RATE = "swats_gamma", "swats_steps", "swats_rate"


class Swats(Wrapper):
    r"""Adam until the equivalent learning rate of SGD has converged, then SGD with that rate.

    With p the whole model's change in a step and g its gradient::

        gamma = p.p / -(p.g)                                  the rate at which the projection of SGD's step on p is p
        mean = beta2 mean + (1 - beta2) gamma;                mean^ = mean / (1 - beta2^t)
        switch when |mean^ - gamma| < tolerance;              then, with rate = mean^ (which follows the schedule of lr):
        m = beta1 m + g;                                      w = w - rate (1 - beta1) m

    The dot products are over all parameters and all ranks. Every rank, under every engine, switches at the same update:
    the one after the criterion is met. The switch ends trust ratios; the weight decay mode stays.

    Args:
        base: Adam, AdamW, RAdam or Lamb.
        tolerance: in units of gamma, a learning rate of SGD. Above 0; the paper has 1e-9.

    Raises:
        TypeError: around another wrapper, or an optimizer without ``betas``.
        ValueError: for values out of range.

    The state of each tensor is that of the base. After the switch ``exp_avg`` is SGD's momentum, which begins at 0. Groups
    have ``swats_gamma``, ``swats_steps`` and ``swats_rate`` (0 before the switch).
    """

    base: RuleOptimizer

    def __init__(self, base: RuleOptimizer, tolerance: float = 1e-9) -> None:
        if not isinstance(base, RuleOptimizer) or "betas" not in base.defaults or base.needs_whole:
            raise TypeError(
                f"Swats around {type(base).__name__}: it starts with Adam; write Swats(AdamW(...)), and other wrappers outside"
            )
        if base.defaults["weight_decay_mode"] == "prox-metric":
            raise ValueError("weight_decay_mode='prox-metric' under Swats: SGD has no metric; write 'prox'")
        if not tolerance > 0:
            raise ValueError(f"tolerance={tolerance!r}: must be above 0")
        super().__init__(base)
        self.tolerance = tolerance
        self._spread: dist.ProcessGroup | None = None
        self._in_parts = False  # whether step() gets a part of an update at a time, as under DeepSpeed
        # p.p and p.g of each parameter, by tensor and index, of an update that may not be complete; with the name.
        self._pending: dict[tuple[int, int], tuple[str, Tensor]] = {}
        self._pending_group: Group | None = None  # a copy of the update's first group; None: no update is pending
        self._cached: dict[str, float] | None = None

    @property
    def switched(self) -> bool:
        """Whether the optimizer is SGD now."""
        return bool(self.scalars()[_RATE])

    def use(self, attachment: Attachment) -> None:
        super().use(attachment)
        self._spread = attachment.spread_over
        self._in_parts = attachment.spread_over is None

    options = ("tolerance",)

    def checked_state_dict(self, given: dict[str, Any], kept: set[str]) -> dict[str, Any]:
        return super().checked_state_dict({**given, "state": {k: _renamed(v) for k, v in given["state"].items()}}, kept)

    def scalars(self) -> dict[str, float]:
        self._evaluate()
        return dict(self._estimate())

    def load_scalars(self, scalars: dict[str, float]) -> None:
        self._pending, self._pending_group = {}, None
        self._cached = {key: scalars[key] for key in (_GAMMA, _STEPS, _RATE)}
        self._store(self.param_groups)

    def __getstate__(self) -> dict[str, Any]:
        self._finish()
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pending, self._pending_group, self._cached = {}, None, None  # it is in the groups

    def state_dict(self) -> dict[str, Any]:
        self._finish()
        return super().state_dict()

    def _finish(self) -> None:
        self._evaluate()
        self._store(self.param_groups)

    def _estimate(self) -> dict[str, float]:
        if self._cached is None:
            group = self.param_groups[0]
            self._cached = {key: float(group.get(key, 0.0)) for key in (_GAMMA, _STEPS, _RATE)}
        return self._cached

    def _store(self, groups: list[Group]) -> None:
        for group in groups:
            group.update(self._estimate())
            if group[_RATE]:
                group["trust_ratio"] = False

    @property
    def needs_global_sums(self) -> bool:
        return True

    def state_tensors(self, group: Group) -> int:
        return self.base.state_tensors(group)

    def update(self, tensors_and_groups: Work) -> None:
        """Engines call this for a group or a part of one at a time. The criterion is evaluated before the next update."""
        seen = {tensor for tensor, _ in self._pending}
        if any(id(tensor) in seen for _, tensor in tensors_and_groups):
            self._evaluate()
        groups = list({id(group): group for group, _ in tensors_and_groups}.values())
        self._store(groups)
        if self._estimate()[_RATE]:
            self._sgd_step(tensors_and_groups)
            return
        if self._pending_group is None:
            self._pending_group = dict(
                (groups or self.param_groups)[0]
            )  # a scheduler may change the group before the end
        buckets = self.base.prepare(tensors_and_groups)
        before = [weights.detach().clone() for bucket in buckets for weights in bucket.tensors.weights]
        self.base.update_buckets(buckets)
        self._project(buckets, before)  # of fp32 copies the change before it is rounded to 16-bit weights
        self.base.round(buckets)
        if not self._in_parts:
            self._evaluate()

    def _project(self, buckets: Sequence[Bucket], before: list[Tensor]) -> None:
        shards, products = [], []
        rows = ((b.group, *row) for b in buckets for row in zip(b.shards, b.tensors.weights, strict=True))
        for (group, shard, weights), old in zip(rows, before, strict=True):
            sums = torch.zeros(2, len(shard.parameters), dtype=torch.float64, device=old.device)
            change, gradient = (weights.detach() - old).reshape(-1), local_gradient(shard.tensor).reshape(-1)
            for offset, length, index in shard.segments():
                p, g = change[offset : offset + length], gradient[offset : offset + length]
                sums[0, index] += dot(p, p)
                sums[1, index] += -dot(p, g) if group["maximize"] else dot(p, g)
            shards.append(shard)
            products.append((shard.process_group, sums if shard.is_counted else torch.zeros_like(sums)))
        for shard, sums in zip(shards, sum_by_process_group(products), strict=True):
            for index, parameter in enumerate(shard.parameters):
                self._pending[id(shard.tensor), index] = (parameter.name, sums[:, index])

    def _evaluate(self) -> None:
        """Evaluate the criterion for an update that is complete."""
        if self._pending_group is None:
            return
        group, self._pending_group = self._pending_group, None
        # Sorted by name, so that the bits do not depend on the order in which an engine takes the parts.
        sums = [s for _, s in sorted(self._pending.values(), key=lambda named: named[0])]
        total = torch.stack(sums or [torch.zeros(2, dtype=torch.float64, device="cpu")]).sum(0)
        self._pending = {}
        if self._spread is not None:
            total = sum_over_ranks([total], self._spread)[0]
        square, slope = total.tolist()
        estimate = self._estimate()
        if slope >= 0 or square == 0:  # not downhill: no learning rate of SGD is equivalent
            return
        beta2 = group["betas"][1]
        gamma, steps = square / -slope, estimate[_STEPS] + 1
        mean = beta2 * estimate[_GAMMA] + (1 - beta2) * gamma
        corrected = mean / (1 - beta2**steps)
        switch = steps > 1 and abs(corrected - gamma) < self.tolerance
        # The schedule continues: the rate is stored relative to the lr at which it was estimated.
        rate = corrected / float(group["lr"]) if switch else 0.0
        self._cached = {_GAMMA: mean, _STEPS: steps, _RATE: rate}
        if switch:
            for state in self.state.values():
                if "exp_avg" in state:
                    local(state["exp_avg"]).zero_()

    def _sgd_step(self, tensors_and_groups: Work) -> None:
        for _, tensor in tensors_and_groups:
            state = self.state[tensor]
            if "momentum_buffer" in state:
                self.state[tensor] = _renamed(state)
        self.forget_trust_ratios()
        self.base.update(tensors_and_groups, _SgdRule())


def _renamed(state: Any) -> Any:
    """The state of a tensor that an older version saved after the switch, with the names of this one."""
    if not isinstance(state, dict) or "momentum_buffer" not in state:
        return state
    moments = {"exp_avg": state["momentum_buffer"], "exp_avg_sq": torch.zeros_like(state["momentum_buffer"])}
    return {**{key: value for key, value in state.items() if key != "momentum_buffer"}, **moments}


class _SgdRule(Rule):
    """SGD after the switch."""

    def state_names(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg",)

    def rate(self, group: Group) -> float:
        return float(group[_RATE] * float(group["lr"]))

    def update_moments(self, g: Tensor, state: State, group: Group, step: Number) -> None:
        state["exp_avg"].mul_(group["betas"][0]).add_(g)

    def direction(self, w: Tensor, g: Tensor, state: State, group: Group, step: Number) -> Tensor:
        return state["exp_avg"] * (1 - group["betas"][0])

    def coefficients(self, group: Group, step: int) -> Coefficients:
        beta1 = group["betas"][0]
        return Coefficients("momentum", rate=self.rate(group), beta1=beta1, numerator=1 - beta1)


def swats_adamw(params: Any, *, tolerance: float = 1e-9, **options: Any) -> Swats:
    """Swats around AdamW: the optimizer ``swats`` of a config."""
    return Swats(AdamW(params, **options), tolerance)
