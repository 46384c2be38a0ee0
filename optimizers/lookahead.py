"""Lookahead (Zhang et al. 2019, arXiv 1907.08610, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from bellwether.optimizers.sharded import ShardedOptimizer, Work
from bellwether.optimizers.shards.layout import local
from bellwether.optimizers.wrapper import Wrapper


class Lookahead(Wrapper):
    r"""Slow weights that follow the fast ones: every ``k`` steps::

        slow = slow + alpha (fast - slow);        fast = slow

    Args:
        base: the optimizer of the fast weights, any of this package. Its moments are not changed.
        k: steps between synchronizations. At least 1.
        alpha: step size of the slow weights, in (0, 1].

    Raises:
        ValueError: for values out of range.

    State of each tensor, in addition to the inner optimizer's: ``slow``.

    >>> from bellwether.optimizers import SGD
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = Lookahead(SGD([weight], lr=0.1), k=2, alpha=0.5)
    >>> for _ in range(2):
    ...     weight.grad = torch.tensor([1.0])
    ...     optimizer.step()
    >>> round(weight.item(), 6)  # the fast weight went from 1 to 0.8, the slow one goes half of that
    0.9
    """

    def __init__(self, base: ShardedOptimizer, k: int = 5, alpha: float = 0.5) -> None:
        if not (isinstance(k, int) and k >= 1):
            raise ValueError(f"k={k!r}: must be an integer number of steps, at least 1")
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha={alpha!r}: must be above 0 and at most 1")
        super().__init__(base)
        self.k, self.alpha = k, alpha

    options = ("k", "alpha")

    def own_state_names(self) -> set[str]:
        return {"slow"}

    def state_dtype(self, tensor: Tensor, name: str) -> torch.dtype:
        # In 16 bits a small step towards the fast weights would round to 0.
        return torch.promote_types(tensor.dtype, torch.float32) if name == "slow" else super().state_dtype(tensor, name)

    def update(self, work: Work) -> None:
        for _, tensor in work:
            if "slow" not in self.state[tensor]:
                self.state[tensor]["slow"] = tensor.detach().to(self.state_dtype(tensor, "slow"), copy=True)
        super().update(work)
        for _, tensor in work:
            state = self.state[tensor]
            if int(state["step"].item()) % self.k == 0:
                slow, fast = local(state["slow"]), local(tensor.detach())
                slow.lerp_(fast.to(slow.dtype), self.alpha)
                fast.copy_(slow)
