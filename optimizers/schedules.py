"""Learning-rate schedules that count samples, so that a recipe has the same shape at every batch.

Each is a torch `LRScheduler`: step() once an update. The rate of an update is the curve's value in the middle of the
samples of its batch. Thus no update is lost to a rate of 0 at either end, and the sum of the rates over a run, times
the batch, hardly depends on the batch.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupConstant(LRScheduler):
    """Linear rise from 0 to each group's lr, then constant; the base of the schedules here.

    Args:
        optimizer: its groups' ``lr`` are the peaks.
        batch: samples an update (the global batch).
        total: samples of the whole schedule; afterwards the rate stays as it is at the end.
        warmup: samples of the rise.
        final: rate at the end, as a share of the peak.

    Raises:
        ValueError: if the lengths do not fit.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = WarmupLinear(optimizer, batch=10, total=100, warmup=20)
    >>> rates = []
    >>> for _ in range(10):
    ...     rates.append(round(schedule.get_last_lr()[0], 4))
    ...     optimizer.step()
    ...     schedule.step()
    >>> rates
    [0.25, 0.75, 0.9375, 0.8125, 0.6875, 0.5625, 0.4375, 0.3125, 0.1875, 0.0625]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        batch: int,
        total: int,
        warmup: int = 0,
        final: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if batch < 1 or total < 1:
            raise ValueError(f"batch={batch}, total={total}: must be at least 1, in samples")
        if not 0 <= warmup <= total:
            raise ValueError(f"warmup={warmup}: must be from 0 to total={total} samples")
        if not 0 <= final <= 1:
            raise ValueError(f"final={final}: must be from 0 to 1, a share of the peak")
        self.batch, self.total, self.warmup, self.final = batch, total, warmup, final
        super().__init__(optimizer, last_epoch)

    def decay(self, progress: float) -> float:
        """The rate after the warm-up, from 1 at ``progress`` 0 down to 0 at 1, before `final` is laid under it."""
        return 1.0

    def factor(self, samples: float) -> float:
        """The rate as a share of the peak, this many samples into the schedule."""
        if samples < self.warmup:
            return samples / self.warmup
        progress = min(1.0, (samples - self.warmup) / max(1, self.total - self.warmup))
        return self.final + (1 - self.final) * self.decay(progress)

    def seek(self, samples: int) -> None:
        """Go to the update that begins this many samples into the schedule, as after a resume."""
        self.last_epoch = samples // self.batch
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def get_lr(self) -> list[float | Tensor]:
        factor = self.factor((self.last_epoch + 0.5) * self.batch)
        return [base * factor for base in self.base_lrs]


class WarmupLinear(WarmupConstant):
    """Linear rise, then linear decay to ``final``."""

    def decay(self, progress: float) -> float:
        return 1 - progress


class WarmupPolynomial(WarmupConstant):
    """Linear rise, then (1 - progress) to the power ``power`` (BERT: 1; NVIDIA's BERT: 0.5)."""

    def __init__(self, optimizer: Optimizer, *, power: float = 1.0, **kwargs: float) -> None:
        if power <= 0:
            raise ValueError(f"power={power}: must be above 0")
        self.power = power
        super().__init__(optimizer, **kwargs)  # type: ignore[arg-type]

    def decay(self, progress: float) -> float:
        return float((1 - progress) ** self.power)


class WarmupCosine(WarmupConstant):
    """Linear rise, then half a cosine (Loshchilov and Hutter 2016, 1608.03983, without restarts)."""

    def decay(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))


class Trapezoid(WarmupConstant):
    """Linear rise, a constant stretch, linear fall over the last ``cooldown`` samples (Xing et al. 2018, 1802.08770)."""

    def __init__(self, optimizer: Optimizer, *, cooldown: int, **kwargs: float) -> None:
        self.cooldown = cooldown
        total, warmup = kwargs["total"], kwargs.get("warmup", 0)
        if not 0 <= cooldown <= total - warmup:
            raise ValueError(f"cooldown={cooldown}: must be from 0 to total - warmup = {total - warmup} samples")
        super().__init__(optimizer, **kwargs)  # type: ignore[arg-type]

    def decay(self, progress: float) -> float:
        left = (1 - progress) * (self.total - self.warmup)
        return min(1.0, left / self.cooldown) if self.cooldown else 1.0
