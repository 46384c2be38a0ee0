"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024, arXiv 2409.11321, algorithm 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bellwether.optimizers.base import RuleOptimizer
from bellwether.optimizers.rule import Group, State
from bellwether.optimizers.scalars import Number, learning_rate
from bellwether.optimizers.sharded import Attachment, Work
from bellwether.optimizers.shards.layout import ShardLayout
from bellwether.optimizers.weight_decay import WeightDecayMode

# State of a parameter for each of its dimensions that has a factor, with its number, under the names of nikhilvyas/SOAP: the average of
# the products of the gradient's slices, and its eigenvectors as columns, that of the largest eigenvalue first.
FACTOR, BASIS = "GG", "Q"


class SOAP(RuleOptimizer):
    r"""Adam in a basis that turns slowly: of the eigenvectors of Shampoo's two matrices.

    For a matrix w [m, n] with gradient g, in the basis of the steps before::

        g' = Q0^T g Q1
        m = beta1 m + (1 - beta1) g;          v = beta2 v + (1 - beta2) g'^2
        u = Q0 ((Q0^T m Q1) / (sqrt(v) + eps)) Q1^T
        w = w - lr sqrt(1 - beta2^t) / (1 - beta1^t) u;       w = (1 - lr weight_decay) w
        GG0 = b GG0 + (1 - b) g g^T;          GG1 = b GG1 + (1 - b) g^T g          b = shampoo_beta
        Q = qr(GG Q), columns by descending eigenvalue                              every precondition_frequency steps

    The first step only initializes: GG from its gradient, Q from GG. A parameter of more dimensions has a factor for each, a
    dimension above ``max_precond_dim`` has none, and vectors are updated as by Adam.

    Each rank keeps the whole GG and Q of each parameter, so parameters must not be sharded: plain torch, DDP, ZeRO stage 0,
    `ZeroRedundancyOptimizer`. A step under ZeRO 1 to 3 and FSDP2 is refused.

    Args:
        params: parameters or param groups.
        lr: learning rate. At least 0.
        betas: decay rates of the first and second moment, each in [0, 1).
        shampoo_beta: decay rate of GG; None: beta2.
        eps: added to the denominator, in units of the gradient. At least 0.
        weight_decay: at least 0; multiplied by lr.
        precondition_frequency: steps between updates of Q. At least 1.
        max_precond_dim: the largest dimension that has a factor.
        precondition_1d: whether vectors have one.
        weight_decay_mode: any but prox-metric.
        peak_lr, maximize, kernel, max_grad_norm, stochastic_rounding, kahan_sum, rounding_seed: as in `bellwether.optimizers.Lamb`; it has
            no compiled kernel.

    Raises:
        ValueError: for values out of range.

    The arithmetic is that of nikhilvyas/SOAP with ``merge_dims`` and ``normalize_grads`` off and ``correct_bias`` on. State of each
    tensor: ``exp_avg``, in the original basis, ``exp_avg_sq``, in that of Q, and for each dimension ``GG`` and ``Q``.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
    >>> optimizer = SOAP([weight], lr=0.1, weight_decay=0.0)
    >>> for _ in range(2):
    ...     weight.grad = torch.tensor([[0.0, 3.0], [0.5, 0.0]])
    ...     optimizer.step()
    >>> weight.detach().abs()  # the first step changes nothing; the second as Adam's first
    tensor([[0.0000, 0.1000],
            [0.1000, 0.0000]])
    """

    needs_whole = True
    unsupported = ("trust_ratio", "capturable")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10000,
        precondition_1d: bool = False,
        *,
        weight_decay_mode: WeightDecayMode = "decoupled",
        peak_lr: float | None = None,
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
            shampoo_beta=shampoo_beta,
            eps=eps,
            weight_decay=weight_decay,
            precondition_frequency=precondition_frequency,
            max_precond_dim=max_precond_dim,
            precondition_1d=precondition_1d,
            weight_decay_mode=weight_decay_mode,
            trust_ratio=False,
            trust_bounds=None,
            peak_lr=peak_lr,
            maximize=maximize,
            max_grad_norm=max_grad_norm,
            stochastic_rounding=stochastic_rounding,
            kahan_sum=kahan_sum,
            rounding_seed=rounding_seed,
        )

    def use(self, attachment: Attachment) -> None:
        self._refuse_sharded(attachment.shards)
        super().use(attachment)

    def update(self, work: Work, rule: Any = None) -> None:
        self._refuse_sharded([self.shard_of(tensor) for _, tensor in work])
        super().update(work, rule)

    def _refuse_sharded(self, shards: Sequence[ShardLayout]) -> None:
        if any(shard.process_group is not None for shard in shards):
            raise NotImplementedError(
                f"{self.name} on sharded parameters: each rank keeps the eigenvectors of whole parameters, which a rank with slices "
                "cannot update; use ZeRO stage 0 or DDP, or a rule that can be sharded, such as Muon"
            )

    def state_names(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def whole_state(self, shape: Sequence[int], group: Group) -> dict[str, tuple[int, ...]]:
        return {f"{kind}_{d}": (shape[d], shape[d]) for d in _dimensions(shape, group) for kind in (FACTOR, BASIS)}

    def checked_state_dict(self, given: dict[str, Any], kept: set[str]) -> dict[str, Any]:
        whole = {
            name for state in given["state"].values() for name in state if name.partition("_")[0] in (FACTOR, BASIS)
        }
        state_dict = super().checked_state_dict(given, kept | whole)
        for saved, own in zip(state_dict["param_groups"], self.param_groups, strict=False):
            for key, parameter in zip(saved["params"], own["params"], strict=False):
                values = state_dict["state"].get(key)
                if values and (missing := self.whole_state(parameter.shape, saved).keys() - values.keys()):
                    raise ValueError(
                        f"the state has no {', '.join(sorted(missing))} for a parameter, which SOAP needs: it is the state of another "
                        "optimizer, or of other options"
                    )
        return state_dict

    def update_moments(self, g: Tensor, state: State, group: Group, step: Number) -> None:
        """The moments are updated with the whole direction, as they need the bases."""

    def direction(self, w: Tensor, g: Tensor, state: State, group: Group, step: Number) -> Tensor:
        return g

    def whole_dtype(self, group: Group) -> torch.dtype | None:
        return None

    def direction_with_state(self, direction: Tensor, state: State, group: Group, step: Number) -> Tensor:
        g, (beta1, beta2) = direction, group["betas"]
        dimensions = _dimensions(g.shape, group)
        if step == 1:
            for d in dimensions:
                state[f"{FACTOR}_{d}"] = _outer(g, d) * (1 - _decay(group))
                state[f"{BASIS}_{d}"] = _eigenvectors(state[f"{FACTOR}_{d}"])
            return torch.zeros_like(g)
        factors = {d: state[f"{FACTOR}_{d}"] for d in dimensions}
        bases = {d: state[f"{BASIS}_{d}"] for d in dimensions}
        m, v, t = state["exp_avg"], state["exp_avg_sq"], step - 1
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).add_(_rotated(g, bases).square_(), alpha=1 - beta2)
        turned = _rotated(m, bases).div_(v.sqrt().add_(group["eps"]))
        u = _rotated(turned, bases, back=True).mul_(math.sqrt(1 - beta2**t) / (1 - beta1**t))
        for d, factor in factors.items():
            factor.lerp_(_outer(g, d), 1 - _decay(group))
        if t % group["precondition_frequency"] == 0:
            for d in dimensions:
                state[f"{BASIS}_{d}"], order = _turned(factors[d], bases[d])
                v.copy_(v.index_select(d, order))
        return u

    def apply_update(self, w: Tensor, update: Tensor, state: State, group: Group, step: Number) -> None:
        if step == 1:
            return
        if group["weight_decay_mode"] == "decoupled":  # after the step, as the original
            w.sub_(update).mul_(1 - learning_rate(group) * group["weight_decay"])
        else:
            super().apply_update(w, update, state, group, step)


def _dimensions(shape: Sequence[int], group: Group) -> list[int]:
    """The dimensions of a parameter that have a factor."""
    if len(shape) == 0 or (len(shape) == 1 and not group["precondition_1d"]) or 0 in shape:
        return []
    return [d for d, size in enumerate(shape) if size <= group["max_precond_dim"]]


def _decay(group: Group) -> float:
    beta = group["shampoo_beta"]
    return float(group["betas"][1] if beta is None else beta)


def _outer(g: Tensor, d: int) -> Tensor:
    """Sum of the outer products of a gradient's vectors along dimension d, [size, size]."""
    others = [i for i in range(g.dim()) if i != d]
    return torch.tensordot(g, g, dims=(others, others))


def _rotated(x: Tensor, bases: dict[int, Tensor], *, back: bool = False) -> Tensor:
    """A parameter's tensor in the bases, or back from them, in new memory."""
    out = x.clone(memory_format=torch.contiguous_format)
    for d, basis in bases.items():
        out = torch.tensordot(out, basis, dims=([d], [1 if back else 0])).movedim(-1, d)
    return out.contiguous()


def _eigenvectors(factor: Tensor) -> Tensor:
    """As columns, that of the largest eigenvalue first."""
    if not factor.isfinite().all():  # the run has diverged: its weights show it, and an exception would not
        return torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    try:
        vectors = torch.linalg.eigh(factor)[1]
    except torch.linalg.LinAlgError:  # not converged, as in the original
        vectors = torch.linalg.eigh(factor.double())[1].to(factor.dtype)
    return vectors.flip(1).contiguous()


def _turned(factor: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The basis after one power iteration, and the order of its columns, by descending eigenvalue, in the old one."""
    product = factor @ basis
    order = (basis * product).sum(0).argsort(descending=True)
    return torch.linalg.qr(product.index_select(1, order))[0].contiguous(), order
