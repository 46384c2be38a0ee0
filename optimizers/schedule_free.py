"""Schedule-Free AdamW (Defazio et al. 2024, The Road Less Scheduled, arXiv 2405.15682, algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bellwether.optimizers.average_swap import AverageSwap
from bellwether.optimizers.base import RuleOptimizer
from bellwether.optimizers.rounding import COMPENSATION
from bellwether.optimizers.rule import Group, Rule, State
from bellwether.optimizers.scalars import Number
from bellwether.optimizers.sharded import Work
from bellwether.optimizers.shards.layout import local
from bellwether.optimizers.weight_decay import WeightDecayMode

BETA1 = "schedule_free_beta1"  # in `scalars`: for readers of a checkpoint that have no optimizer
_COUNTS = ("k", "lr_max", "weight_sum")  # of a group, under the names of facebookresearch/schedule_free


class AdamWScheduleFree(AverageSwap, RuleOptimizer):
    r"""AdamW with an average of its iterates in place of a decaying learning rate.

    The model is trained at y, and evaluated at x, which is an average of z; with the gradient g of y::

        v = beta2 v + (1 - beta2) g^2
        z = z - lr (g / (sqrt(v^) + eps) + weight_decay y)
        x = (1 - c) x + c z                                   c = k^r lr_max^p / (sum of these so far), p = weight_lr_power
        y = (1 - beta1) z + beta1 x

    Keep the learning rate constant after a warm-up. ``with optimizer.averaged():`` puts x into the model, and takes it out
    again: evaluate and export inside. BatchNorm's statistics belong to y: see `recompute_batch_norm`. A training step and
    `state_dict` are refused inside.

    Args:
        params: parameters or param groups.
        lr: learning rate; the authors found 1 to 10 times that of AdamW under a schedule to work. At least 0.
        betas: weight of x in y, above 0 and the same in all groups, which does what momentum does; and decay rate of the second moment. In [0, 1).
        eps: added to the denominator, in units of the gradient. At least 0.
        weight_decay: at least 0; multiplied by lr, and taken at y.
        warmup_steps: steps of a linear warm-up, for loops without a schedule that warms up.
        r: power of the step in the weights of the average.
        weight_lr_power: power of the largest learning rate so far in them, so that the warm-up counts little.
        weight_decay_mode: decoupled, or l2.
        maximize: ascend instead of descend.
        kernel: ``auto`` or ``reference``: it has no compiled kernel.
        max_grad_norm: clip the global norm of the gradients at this, for engines that do not; None: do not.
        stochastic_rounding, kahan_sum, rounding_seed: for 16-bit weights: `bellwether.optimizers.rounding`.

    Raises:
        ValueError: for values out of range.

    The arithmetic and the arguments up to ``weight_lr_power`` are those of ``schedulefree.AdamWScheduleFree``, whose
    ``eval()`` and ``train()`` are `averaged`. State of each tensor: ``z`` and ``exp_avg_sq``; x follows from y and z.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = AdamWScheduleFree([weight], lr=1.0)
    >>> for _ in range(3):
    ...     weight.grad = torch.tensor([1.0])
    ...     optimizer.step()
    >>> round(weight.item(), 6)  # y, between z = 1 and x
    1.9
    >>> with optimizer.averaged():
    ...     round(weight.item(), 6)  # x, the mean of z = 3, 2 and 1
    2.0
    """

    weight_decay_modes = ("l2", "decoupled")
    replaces_weights = True
    unsupported = ("trust_ratio", "capturable")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        *,
        weight_decay_mode: WeightDecayMode = "decoupled",
        maximize: bool = False,
        kernel: str = "auto",
        max_grad_norm: float | None = None,
        stochastic_rounding: bool = False,
        kahan_sum: bool = False,
        rounding_seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            kernel=kernel,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            r=r,
            weight_lr_power=weight_lr_power,
            weight_decay_mode=weight_decay_mode,
            trust_ratio=False,
            trust_bounds=None,
            maximize=maximize,
            max_grad_norm=max_grad_norm,
            stochastic_rounding=stochastic_rounding,
            kahan_sum=kahan_sum,
            rounding_seed=rounding_seed,
            k=0,
            lr_max=0.0,
            weight_sum=0.0,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        try:
            _check(self.param_groups)
        except ValueError:
            self.param_groups.pop()
            raise

    def state_names(self, group: Group) -> tuple[str, ...]:
        return ("z", "exp_avg_sq")

    def update_moments(self, g: Tensor, state: State, group: Group, step: Number) -> None:
        beta2 = group["betas"][1]
        state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)

    def direction(self, w: Tensor, g: Tensor, state: State, group: Group, step: Number) -> Tensor:
        v_hat = state["exp_avg_sq"] / (1 - group["betas"][1] ** step)
        u = g / v_hat.sqrt_().add_(group["eps"])
        if group["weight_decay"] and group["weight_decay_mode"] == "decoupled":
            u.add_(w, alpha=group["weight_decay"])
        return u

    def rate(self, group: Group) -> float:
        return _warm(group, group["k"])

    def apply_update(self, w: Tensor, update: Tensor, state: State, group: Group, step: Number) -> None:
        """Step z, and y so that x, which is not stored, becomes (1 - c) x + c z."""
        z, beta1, c = state["z"], group["betas"][0], _weight(group)
        y = w if w.dtype == z.dtype else w.to(z.dtype)
        y.lerp_(z, c).sub_(update, alpha=1 - beta1 * (1 - c))
        z.sub_(update)
        if y is not w:
            w.copy_(y)

    def update(self, work: Work, rule: Rule | None = None) -> None:
        self._count(work)
        super().update(work)

    def _count(self, work: Work) -> None:
        """Count the step in each group's average, once: engines call step() for a part of a group's tensors at a time."""
        steps: dict[int, int] = {}
        groups = {id(group): group for group, _ in work}
        for group, tensor in work:
            done = self.state[tensor].get("step")
            steps[id(group)] = max(steps.get(id(group), 0), 1 if done is None else int(done.item()) + 1)
        for key, k in steps.items():
            group = groups[key]
            if k > group["k"]:
                lr = _warm(group, k)
                if not group["lr_max"]:
                    # Of 0 at the start; or `load_scalars` has left the sum in units of the learning rate.
                    group["weight_sum"] *= lr ** group["weight_lr_power"]
                group["k"], group["lr_max"] = k, max(lr, group["lr_max"])
                group["weight_sum"] += _term(group)

    def initial_state(self, tensor: Tensor, name: str) -> Tensor:
        if name != "z":
            return super().initial_state(tensor, name)
        return tensor.detach().to(self.state_dtype(tensor, name), copy=True)

    def average_of(self, tensor: Tensor) -> Tensor | None:
        state = self.state.get(tensor, {})
        if "z" not in state:
            return None
        z, beta1 = local(state["z"]), self.param_groups[0]["betas"][0]
        y = local(tensor.detach()).to(z.dtype)
        if COMPENSATION in state:
            y = y + local(state[COMPENSATION]).to(z.dtype)
        return evaluated_weights(y, z, beta1)

    def scalars(self) -> dict[str, float]:
        own = {f"schedule_free_{key}.{i}": float(g[key]) for i, g in enumerate(self.param_groups) for key in _COUNTS}
        return {**super().scalars(), **own, BETA1: float(self.param_groups[0]["betas"][0])}

    def load_scalars(self, scalars: dict[str, float]) -> None:
        """Continue the averages. Where the parameters were grouped otherwise, all groups continue that of the first."""
        super().load_scalars(scalars)
        saved = sum(key.startswith("schedule_free_k.") for key in scalars)
        for i, group in enumerate(self.param_groups):
            is_same = saved == len(self.param_groups)
            k, lr_max, weight_sum = (scalars[f"schedule_free_{key}.{i if is_same else 0}"] for key in _COUNTS)
            if not is_same and lr_max:  # the rate of this group may be another
                lr_max, weight_sum = 0.0, weight_sum / lr_max ** group["weight_lr_power"]
            group.update(k=int(k), lr_max=lr_max, weight_sum=weight_sum)


def _check(groups: list[Group]) -> None:
    first, group = groups[0], groups[-1]
    if group["betas"][0] != first["betas"][0]:
        raise ValueError(
            f"betas={group['betas']!r} and {first['betas']!r} in different param groups: write the same beta1 in all, as x is found from it"
        )
    if group["betas"][0] == 0:
        raise ValueError(
            f"betas={group['betas']!r}: the first must be above 0, as x is found from y = (1 - beta1) z + beta1 x"
        )


def evaluated_weights(y: Tensor, z: Tensor, beta1: float) -> Tensor:
    """x of y = (1 - beta1) z + beta1 x, in new memory."""
    return torch.lerp(y, z, 1 - 1 / beta1)


def with_beta1(y: Tensor, z: Tensor, old: float, new: float) -> Tensor:
    """y of another beta1, with the same x and z, in new memory."""
    return torch.lerp(evaluated_weights(y, z, old), z, 1 - new)


def _warm(group: Group, k: int) -> float:
    """The learning rate of step k, counted from 1."""
    return float(group["lr"]) * min(1.0, k / max(1, group["warmup_steps"]))


def _term(group: Group) -> float:
    """The weight of the last step in the average, before it is divided by the sum."""
    return float(group["k"] ** group["r"] * group["lr_max"] ** group["weight_lr_power"])


def _weight(group: Group) -> float:
    """c of the last step; 0 where the learning rate has been 0 so far."""
    return _term(group) / group["weight_sum"] if group["weight_sum"] else 0.0
