"""What all optimizers share: direction -> decay -> trust ratio -> learning rate, over shards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optimizers.shards.pieces import Shard, squared_norms, sum_over_ranks


class Composed(Optimizer):
    """w <- w - lr * ratio * (direction(g) + weight_decay * w), the parts chosen by subclass and param group.

    A param group holds, beside torch's keys:

    - ``decoupled``: weight decay is added to the direction (True) or to the gradient (False).
    - ``trust_ratio``: whether each parameter's update is scaled by ||w|| / ||update||, 1 where either norm is 0.

    State of each tensor: ``step`` (float32 scalar, on the CPU), ``exp_avg`` and ``exp_avg_sq`` (as the tensor).
    """

    @staticmethod
    def direction(
        grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: int, betas: tuple[float, float], eps: float
    ) -> Tensor:
        """One of `optimizers.rules`."""
        raise NotImplementedError

    def __init__(
        self,
        params: Any,
        *,
        lr: float | Tensor,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        decoupled: bool,
        trust_ratio: bool,
    ) -> None:
        self._forget()
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
            "trust_ratio": trust_ratio,
        }
        super().__init__(params, defaults)

    def _forget(self) -> None:
        self._known: dict[Tensor, Shard] = {}
        self._ratios: dict[tuple[str, ...], Tensor] = {}
        self._attached = False

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "attached": self._attached}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """For pickle and deepcopy, and for torch's load_state_dict, which leaves the tensors as they are."""
        attached = state.pop("attached", None)
        super().__setstate__(state)
        if attached is None:
            return
        self._forget()
        if not attached:  # an engine's shards cannot be copied: step() asks for attach again
            for index, group in enumerate(self.param_groups):
                self._know(group, index)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _validate(group)
        self._know(group, len(self.param_groups) - 1)

    def _know(self, group: dict[str, Any], index: int) -> None:
        """Remember the parameters as given: an engine that shards puts other tensors in their place."""
        names = group.get("param_names") or [f"{index}.{i}" for i in range(len(group["params"]))]
        for name, parameter in zip(names, group["params"], strict=False):
            self._known[parameter] = Shard.whole(parameter, name)

    @property
    def shards(self) -> Sequence[Shard]:
        """The tensors that this optimizer updates on this rank, in the engine's order."""
        return list(self._known.values())

    def use_shards(self, shards: Iterable[Shard]) -> None:
        """Update these tensors from now on. `optimizers.attach` calls it with what it found in an engine."""
        self._forget()
        self._known = {shard.tensor: shard for shard in shards}
        self._attached = True

    def trust_ratios(self) -> dict[str, float]:
        """The last step's trust ratio of each adapted parameter, by name. Waits for the device; the same on all ranks."""
        if not self._ratios:
            return {}
        names = [name for names in self._ratios for name in names]
        return dict(zip(names, torch.cat(list(self._ratios.values())).tolist(), strict=True))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every tensor that has a gradient. Collectives: one all-reduce if any shard needs a trust ratio.

        Raises:
            RuntimeError: if an engine has put its own tensors into the param groups and `optimizers.attach` was not
                called: their trust ratios would be silently wrong.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not self._attached and self._is_rehearsal([p for _, p in work]):
            return loss
        split = []
        for group, tensor in work:
            shard = self._known[tensor]
            update = self._update(tensor, group)
            if group["trust_ratio"] and shard.process_group is not None:
                split.append((group, shard, update))
            else:
                _descend(
                    group,
                    shard,
                    update,
                    self._trust(shard, squared_norms(shard, tensor, update)) if group["trust_ratio"] else None,
                )
        self._descend_together(split)
        return loss

    def _update(self, tensor: Tensor, group: dict[str, Any]) -> Tensor:
        """Direction, with the decay that a trust ratio is to scale: shaped as the tensor, in fresh memory."""
        grad: Tensor = tensor.grad  # type: ignore[assignment]
        if grad.is_sparse:
            raise RuntimeError(f"{type(self).__name__} needs dense gradients: build the embedding with sparse=False")
        state = self.state[tensor]
        if not state:
            # A step count for each tensor: engines call step() once a sub-group, with the others left out.
            state["step"] = torch.tensor(0.0, dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(tensor, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(tensor, memory_format=torch.preserve_format)
        state["step"] += 1
        weight_decay, decoupled = group["weight_decay"], group["decoupled"]
        if weight_decay and not decoupled:
            grad = grad.add(tensor, alpha=weight_decay)
        update = self.direction(
            grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            int(state["step"].item()),
            group["betas"],
            group["eps"],
        )
        if weight_decay and decoupled and group["trust_ratio"]:
            update.add_(tensor, alpha=weight_decay)
        return update

    def _descend_together(self, work: list[tuple[dict[str, Any], Shard, Tensor]]) -> None:
        """The tensors that are split over ranks: all norms of this call in one all-reduce (one a process group)."""
        by_process_group = defaultdict(list)
        for item in work:
            by_process_group[item[1].process_group].append(item)
        for process_group, items in by_process_group.items():
            assert process_group is not None
            local = [squared_norms(shard, shard.tensor, update) for _, shard, update in items]
            for (group, shard, update), sums in zip(items, sum_over_ranks(local, process_group), strict=True):
                _descend(group, shard, update, self._trust(shard, sums))

    def _trust(self, shard: Shard, sums: Tensor) -> Tensor:
        """||w|| / ||update|| for each parameter of a shard: float64 [parameters] from the squared norms [2, parameters]."""
        weight, update = sums.sqrt()
        ratios = torch.where((weight > 0) & (update > 0), weight / update, torch.ones_like(weight))
        self._ratios[tuple(p.name for p in shard.parameters)] = ratios
        return ratios

    def _is_rehearsal(self, tensors: list[Tensor]) -> bool:
        """Whether this step is an engine's dry run, to be left out. Refuses a real step on tensors that are not known."""
        if all(tensor in self._known for tensor in tensors):
            return False
        # DeepSpeed's 16-bit stage-0 wrapper calls step() with zero gradients while it is built.
        if not any(tensor.grad.any() for tensor in tensors):  # type: ignore[union-attr]
            return True
        raise RuntimeError(
            f"{type(self).__name__}.step() on tensors that an engine put in place of the parameters: call "
            "optimizers.attach(engine) once, right after deepspeed.initialize(). Without it the optimizer cannot know "
            "which parameter each element belongs to, and trust ratios and state would be wrong."
        )


def _descend(group: dict[str, Any], shard: Shard, update: Tensor, ratios: Tensor | None) -> None:
    lr = float(group["lr"])
    if ratios is None:
        if group["weight_decay"] and group["decoupled"]:
            # On the weights, not in the update: torch's order, so that AdamW and RAdam round as torch's do.
            shard.tensor.mul_(1 - lr * group["weight_decay"])
        shard.tensor.add_(update, alpha=-lr)
        return
    rates = (ratios * -lr).to(update.dtype)
    if update.is_contiguous():
        for piece, view in shard.views(update):
            view.mul_(rates[piece.index])
    else:  # one parameter, whole
        update.mul_(rates[0])
    shard.tensor.add_(update)


def _validate(group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    checks = {
        "lr": (group["lr"], float(group["lr"]) >= 0, "at least 0"),
        "betas": (
            group["betas"],
            0 <= beta1 < 1 and 0 <= beta2 < 1,
            "two numbers from 0 up to, not including, 1",
        ),
        "eps": (group["eps"], group["eps"] >= 0, "at least 0"),
        "weight_decay": (group["weight_decay"], group["weight_decay"] >= 0, "at least 0"),
    }
    for name, (value, good, allowed) in checks.items():
        if not good:
            raise ValueError(f"{name}={value!r}: must be {allowed}")
