"""SWATS: from Adam to SGD (Keskar and Socher 2017, arXiv 1712.07628, algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bellwether.optimizers.kernels.tensor_list import Coefficients
from bellwether.optimizers.sharded import Attachment, Group, Work
from bellwether.optimizers.shards.layout import dot, local, local_gradient, sum_by_process_group, sum_over_ranks
from bellwether.optimizers.update import Composed
from bellwether.optimizers.wrapper import Wrapper

_GAMMA, _STEPS, _RATE = "swats_gamma", "swats_steps", "swats_rate"


class Swats(Wrapper):
    r"""Adam until the length of SGD's step that would come out the same has settled, then SGD of that length.

    With p the whole model's change in a step and g its gradient::

        gamma = p.p / -(p.g)                                  the rate at which SGD's projection on p is p
        mean = beta2 mean + (1 - beta2) gamma;                mean^ = mean / (1 - beta2^t)
        switch as soon as |mean^ - gamma| < tolerance;        then, with rate = mean^ (times what the schedule does to lr):
        m = beta1 m + g;                                      w = w - rate (1 - beta1) m

    The scalar products run over all parameters and all ranks; every rank, under every engine, switches at the same
    update: the one after the criterion was met. Trust ratios end with the switch; the form of decay stays.

    Args:
        base: Adam, AdamW, RAdam or Lamb.
        tolerance: in units of gamma, which is a learning rate of SGD. Above 0; the paper has 1e-9.

    Raises:
        TypeError: around another wrapper, or an optimizer without ``betas``.
        ValueError: for values out of range.

    The moments end with the switch too; state of each tensor is ``momentum_buffer`` from then on. Groups hold
    ``swats_gamma``, ``swats_steps`` and ``swats_rate`` (0 before the switch).
    """

    base: Composed

    def __init__(self, base: Composed, tolerance: float = 1e-9) -> None:
        if not isinstance(base, Composed) or "betas" not in base.defaults:
            raise TypeError(
                f"Swats around {type(base).__name__}: it begins with Adam; write Swats(AdamW(...)), other wrappers outside"
            )
        if base.defaults["decay"] == "prox-metric":
            raise ValueError("decay='prox-metric' under Swats: SGD has no metric; write decay='prox'")
        if not tolerance > 0:
            raise ValueError(f"tolerance={tolerance!r}: must be above 0")
        super().__init__(base)
        self.tolerance = tolerance
        self._spread: dist.ProcessGroup | None = None
        self._in_parts = False  # whether step() sees a part of an update at a time, as under DeepSpeed
        # p.p and p.g of each parameter, by tensor and index, of an update that may still go on; with the name.
        self._pending: dict[tuple[int, int], tuple[str, Tensor]] = {}
        self._open: Group | None = None  # what its first group held then; None where there is nothing to judge
        self._kept: dict[str, float] | None = None

    @property
    def switched(self) -> bool:
        """Whether SGD has taken over."""
        return bool(self.scalars()[_RATE])

    def use(self, attachment: Attachment) -> None:
        super().use(attachment)
        self._spread = attachment.spread_over
        self._in_parts = attachment.spread_over is None

    def scalars(self) -> dict[str, float]:
        self._conclude()
        return dict(self._figures())

    def load_scalars(self, scalars: dict[str, float]) -> None:
        self._pending, self._open = {}, None
        self._kept = {key: scalars[key] for key in (_GAMMA, _STEPS, _RATE)}
        self._tell(self.param_groups)

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pending, self._open, self._kept = {}, None, None  # the groups have it

    def state_dict(self) -> dict[str, Any]:
        self._settle()
        return super().state_dict()

    def _settle(self) -> None:
        self._conclude()
        self._tell(self.param_groups)

    def _figures(self) -> dict[str, float]:
        if self._kept is None:
            group = self.param_groups[0]
            self._kept = {key: float(group.get(key, 0.0)) for key in (_GAMMA, _STEPS, _RATE)}
        return self._kept

    def _tell(self, groups: list[Group]) -> None:
        for group in groups:
            group.update(self._figures())
            if group[_RATE]:
                group["trust_ratio"] = False

    @property
    def sums_over_all(self) -> bool:
        return True

    def _update(self, work: Work) -> None:
        """Engines call it for a group or a part of one at a time: what all parts have found is judged before the next."""
        seen = {tensor for tensor, _ in self._pending}
        if any(id(tensor) in seen for _, tensor in work):
            self._conclude()
        groups = list({id(group): group for group, _ in work}.values())
        self._tell(groups)
        if self._figures()[_RATE]:
            self._descend(work)
            return
        if self._open is None:
            self._open = dict((groups or self.param_groups)[0])  # a scheduler may change the group meanwhile
        before = [local(tensor.detach()).clone() for _, tensor in work]
        super()._update(work)
        self._project(work, before)
        if not self._in_parts:
            self._conclude()

    def _project(self, work: Work, before: list[Tensor]) -> None:
        shards, found = [], []
        for (group, tensor), old in zip(work, before, strict=True):
            shard = self.base._known[tensor]
            sums = torch.zeros(2, len(shard.parameters), dtype=torch.float64, device=old.device)
            change, gradient = (local(tensor.detach()) - old).reshape(-1), local_gradient(tensor).reshape(-1)
            for offset, length, index in shard.segments():
                p, g = change[offset : offset + length], gradient[offset : offset + length]
                sums[0, index] += dot(p, p)
                sums[1, index] += -dot(p, g) if group["maximize"] else dot(p, g)
            shards.append(shard)
            found.append((shard.process_group, sums if shard.counts else torch.zeros_like(sums)))
        for shard, sums in zip(shards, sum_by_process_group(found), strict=True):
            for index, parameter in enumerate(shard.parameters):
                self._pending[id(shard.tensor), index] = (parameter.name, sums[:, index])

    def _conclude(self) -> None:
        """Judge an update whose parts have all been seen."""
        if self._open is None:
            return
        group, self._open = self._open, None
        # By name, so that the order in which an engine takes the parts does not change a bit.
        sums = [s for _, s in sorted(self._pending.values(), key=lambda named: named[0])]
        total = torch.stack(sums or [torch.zeros(2, dtype=torch.float64, device="cpu")]).sum(0)
        self._pending = {}
        if self._spread is not None:
            total = sum_over_ranks([total], self._spread)[0]
        square, slope = total.tolist()
        figures = self._figures()
        if slope >= 0 or square == 0:  # not downhill: no rate of SGD would do the same
            return
        beta2 = group["betas"][1]
        gamma, steps = square / -slope, figures[_STEPS] + 1
        mean = beta2 * figures[_GAMMA] + (1 - beta2) * gamma
        corrected = mean / (1 - beta2**steps)
        switch = steps > 1 and abs(corrected - gamma) < self.tolerance
        # The schedule goes on: the rate is kept in proportion to the lr at which it was found.
        rate = corrected / float(group["lr"]) if switch else 0.0
        self._kept = {_GAMMA: mean, _STEPS: steps, _RATE: rate}

    def _descend(self, work: Work) -> None:
        for _, tensor in work:
            state = self.state[tensor]
            for name in [name for name in state if name.startswith(("exp_avg", "max_exp_avg"))]:
                del state[name]
        self.base._ratios.clear()
        self.base._update(work, _sgd)


def _sgd(group: Group, step: int) -> Coefficients:
    beta1 = group["betas"][0]
    return Coefficients(
        formula="momentum",
        rate=group[_RATE] * float(group["lr"]),
        grad=-1.0 if group["maximize"] else 1.0,
        beta1=beta1,
        numerator=1 - beta1,
    )
