"""Learning rate schedules that count samples, so that a schedule has the same shape at every batch size.

Each is a torch `LRScheduler`: call step() once after each update. The rate of an update is the curve's value in the
middle of the samples of its batch. So no update has rate 0 at either end, and the sum of the rates over a run times the
batch size hardly depends on the batch size.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bellwether.optimizers.batch_schedule import BatchSchedule
from bellwether.optimizers.scalars import set_lr
from bellwether.optimizers.scaling import Rule, scaled_lr


class WarmupConstant(LRScheduler):
    """Linear rise from 0 to each group's lr, then constant; the base of the schedules here.

    Args:
        optimizer: its groups' ``lr`` are the peaks.
        batch: samples of an update (the global batch size); or ``[(samples, batch), ...]`` where it changes, see `BatchSchedule`.
        batch_rule: ``linear`` or ``sqrt``: the groups' ``lr`` are the peaks at the first batch size, and the rate at later ones is
            scaled by it, as by `scaled_lr`; ``none``: it is the same at each.
        total: samples of the whole schedule; afterwards the rate stays at its final value.
        warmup: samples of the rise.
        start: rate at the beginning of the rise, as a fraction of the peak.
        final: rate at the end, as a fraction of the peak.
        warmup_power: exponent of the rise: 2 rises as a parabola.
        decay_from: ``warmup``: the decay begins after the warm-up, at the peak. ``start``: it is a curve over the whole schedule,
            to which the rate drops when the warm-up ends, as in the published code of BERT (google-research/bert,
            optimization.py; NVIDIA's PolyWarmUpScheduler; MLPerf's LinearWarmupPolyDecayScheduler).
        momentum: (highest, lowest) momentum, or beta1: lowest where the rate is highest, interpolated linearly
            (Smith 2018, 1803.09820, section 4.3). None: unchanged.
        scale_decay: scale each group's ``weight_decay`` by the same factor as its rate.

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
        batch: int | Sequence[tuple[int, int]],
        total: int,
        warmup: int = 0,
        start: float = 0.0,
        final: float = 0.0,
        warmup_power: float = 1.0,
        decay_from: str = "warmup",
        momentum: tuple[float, float] | None = None,
        scale_decay: bool = False,
        batch_rule: Rule = "none",
        last_epoch: int = -1,
    ) -> None:
        BatchSchedule(batch)
        if total < 1:
            raise ValueError(f"total={total}: must be at least 1, in samples")
        if not 0 <= warmup <= total:
            raise ValueError(f"warmup={warmup}: must be from 0 to total={total} samples")
        for name, fraction in {"start": start, "final": final}.items():
            if not 0 <= fraction <= 1:
                raise ValueError(f"{name}={fraction}: must be from 0 to 1, a fraction of the peak")
        if warmup_power <= 0:
            raise ValueError(f"warmup_power={warmup_power}: must be above 0")
        if decay_from not in ("warmup", "start"):
            raise ValueError(f"decay_from={decay_from!r}: must be 'warmup' or 'start'")
        if momentum is not None and not 0 <= momentum[1] <= momentum[0] < 1:
            raise ValueError(f"momentum={momentum}: must be (highest, lowest), each in [0, 1)")
        # Plain numbers, so that state_dict() holds no objects.
        self.batch, self.batch_rule = (
            batch if isinstance(batch, int) else [(at, size) for at, size in batch],
            batch_rule,
        )
        self.total, self.warmup, self.start, self.final = total, warmup, start, final
        self.warmup_power, self.decay_from, self.momentum = warmup_power, decay_from, momentum
        # Stored in the group, so that a scheduler created after load_state_dict does not scale a scaled value.
        self.scale_decay = scale_decay
        if scale_decay:
            if any(group.get("weight_decay_mode") in ("independent", "prox") for group in optimizer.param_groups):
                raise ValueError("scale_decay=True: weight_decay_mode='independent' and 'prox' follow the rate already")
            for group in optimizer.param_groups:
                group.setdefault("peak_weight_decay", group["weight_decay"])
        super().__init__(optimizer, last_epoch)

    @property
    def origin(self) -> int:
        """Samples at which the decay begins."""
        return self.warmup if self.decay_from == "warmup" else 0

    def decay(self, progress: float) -> float:
        """The decay from 1 at ``progress`` 0 to 0 at 1, before it is rescaled to end at `final`. Progress 0 is at `origin`."""
        return 1.0

    def factor(self, samples: float) -> float:
        """The rate as a fraction of the peak, after this many samples."""
        if samples < self.warmup:
            return self.start + (1 - self.start) * (samples / self.warmup) ** self.warmup_power
        progress = min(1.0, (samples - self.origin) / max(1, self.total - self.origin))
        return self.final + (1 - self.final) * self.decay(progress)

    def cycle(self, samples: float) -> float:
        """Position of the momentum between its highest value (0) and its lowest (1)."""
        return self.factor(samples)

    def seek(self, samples: int) -> None:
        """Move to the update that begins after this many samples, as after a resume."""
        self.last_epoch = BatchSchedule(self.batch).step(samples)
        rates = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            set_lr(group, lr)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def get_lr(self) -> list[float | Tensor]:
        if len(self.base_lrs) != len(self.optimizer.param_groups):
            raise RuntimeError(
                f"the optimizer has {len(self.optimizer.param_groups)} param groups, and the schedule was made for "
                f"{len(self.base_lrs)}: after add_param_group() make a new schedule, and call its seek(samples)"
            )
        batches = BatchSchedule(self.batch)
        batch = batches.batch(self.last_epoch)
        samples = batches.samples(self.last_epoch) + 0.5 * batch
        factor, cycle = self.factor(samples), self.cycle(samples)
        of_batch = scaled_lr(1.0, batch, batches.batch(0), self.batch_rule)
        for group in self.optimizer.param_groups:
            if self.momentum is not None:
                _set_momentum(group, self.momentum[0] + cycle * (self.momentum[1] - self.momentum[0]))
            if self.scale_decay:
                group["weight_decay"] = group["peak_weight_decay"] * factor
        return [base * factor * of_batch for base in self.base_lrs]


class WarmupLinear(WarmupConstant):
    """Linear rise, then linear decay to ``final``."""

    def decay(self, progress: float) -> float:
        return 1 - progress


class WarmupPolynomial(WarmupConstant):
    """Linear rise, then (1 - progress) to the power ``power`` (BERT: 1; NVIDIA's BERT: 0.5)."""

    def __init__(self, optimizer: Optimizer, *, power: float = 1.0, **kwargs: Any) -> None:
        if power <= 0:
            raise ValueError(f"power={power}: must be above 0")
        self.power = power
        super().__init__(optimizer, **kwargs)

    def decay(self, progress: float) -> float:
        return float((1 - progress) ** self.power)


class WarmupCosine(WarmupConstant):
    """Linear rise, then half a cosine (Loshchilov and Hutter 2016, 1608.03983, without restarts)."""

    def decay(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))


class Trapezoid(WarmupConstant):
    """Linear rise, a constant stretch, linear fall over the last ``cooldown`` samples (Xing et al. 2018, 1802.08770)."""

    def __init__(self, optimizer: Optimizer, *, cooldown: int, **kwargs: Any) -> None:
        self.cooldown = cooldown
        total, warmup = kwargs["total"], kwargs.get("warmup", 0)
        if not 0 <= cooldown <= total - warmup:
            raise ValueError(f"cooldown={cooldown}: must be from 0 to total - warmup = {total - warmup} samples")
        super().__init__(optimizer, **kwargs)

    def decay(self, progress: float) -> float:
        left = (1 - progress) * (self.total - self.origin)
        return min(1.0, left / self.cooldown) if self.cooldown else 1.0


class WarmupStep(WarmupConstant):
    """Linear rise, then a factor of ``drop`` at each milestone, in samples from the start (Goyal et al. 2017: 0.1)."""

    def __init__(self, optimizer: Optimizer, *, milestones: Sequence[int], drop: float = 0.1, **kwargs: Any) -> None:
        if not 0 < drop < 1:
            raise ValueError(f"drop={drop}: must be between 0 and 1")
        if list(milestones) != sorted(milestones) or min(milestones, default=0) < 0:
            raise ValueError(f"milestones={list(milestones)}: must be ascending, in samples from the start")
        self.milestones, self.drop = list(milestones), drop
        super().__init__(optimizer, **kwargs)

    def decay(self, progress: float) -> float:
        samples = self.origin + progress * (self.total - self.origin)
        return self.drop ** bisect_right(self.milestones, samples)


class WarmupExponential(WarmupConstant):
    """Rise, then a decay by the factor ``drop`` every ``interval`` samples, continuously, towards ``final``.

    Unlike other schedules it does not arrive at ``final``: its rate is final + (1 - final) x drop^(samples / interval) of the peak.
    DeepSpeed's BERT (DeepSpeedExamples, training/bing_bert, ``--lr_schedule EE``) has warmup_power=2 and drop=0.9.
    """

    def __init__(self, optimizer: Optimizer, *, interval: int, drop: float = 0.1, **kwargs: Any) -> None:
        if interval < 1:
            raise ValueError(f"interval={interval}: must be at least 1, in samples")
        if not 0 < drop < 1:
            raise ValueError(f"drop={drop}: must be between 0 and 1")
        self.interval, self.drop = interval, drop
        super().__init__(optimizer, **kwargs)

    def decay(self, progress: float) -> float:
        return float(self.drop ** (progress * (self.total - self.origin) / self.interval))


class Exponential(WarmupConstant):
    """From ``start`` to ``final`` by a constant factor: a decay, or the rise of a learning rate range test.

    Both are fractions of the groups' lr, above 0. There is no warm-up.
    """

    def __init__(self, optimizer: Optimizer, *, start: float = 1.0, final: float, **kwargs: Any) -> None:
        if kwargs.get("warmup"):
            raise ValueError(f"warmup={kwargs['warmup']}: an exponential schedule has no warm-up; write start=...")
        if not (start > 0 and final > 0):
            raise ValueError(f"start={start}, final={final}: must be above 0")
        super().__init__(optimizer, start=start, final=final, **kwargs)

    def factor(self, samples: float) -> float:
        progress = min(1.0, samples / self.total)
        return float(self.start ** (1 - progress) * self.final**progress)


class OneCycle(WarmupConstant):
    """1cycle (Smith 2018, 1803.09820): the rate rises and falls, the momentum falls and rises; then a phase near rate 0.

    Args:
        rise: samples from ``initial`` to the peak; 0.45 of the total by default.
        stretch: samples at the peak. 0 is the plain cycle; a short rise and a long stretch give a trapezoid, as used for
            language models.
        annihilation: samples at the end, from ``initial`` down to ``final``; a tenth of the total by default.
        initial: rate at the beginning and after the fall, as a fraction of the peak.
        final: rate at the very end, as a fraction of the peak.
        momentum: (highest, lowest); (0.95, 0.85) by default; None: unchanged.

    The momentum is at its highest again when the annihilation begins.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    >>> schedule = OneCycle(optimizer, batch=10, total=100, rise=40, annihilation=20)
    >>> rates, momenta = [], []
    >>> for _ in range(10):
    ...     group = optimizer.param_groups[0]
    ...     rates.append(round(group["lr"], 3))
    ...     momenta.append(round(group["momentum"], 4))
    ...     optimizer.step()
    ...     schedule.step()
    >>> rates
    [0.16, 0.4, 0.64, 0.88, 0.88, 0.64, 0.4, 0.16, 0.03, 0.01]
    >>> momenta
    [0.9375, 0.9125, 0.8875, 0.8625, 0.8625, 0.8875, 0.9125, 0.9375, 0.95, 0.95]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        batch: int | Sequence[tuple[int, int]],
        total: int,
        rise: int | None = None,
        stretch: int = 0,
        annihilation: int | None = None,
        initial: float = 0.04,
        final: float = 0.0,
        momentum: tuple[float, float] | None = (0.95, 0.85),
        scale_decay: bool = False,
        batch_rule: Rule = "none",
        last_epoch: int = -1,
    ) -> None:
        rise = round(0.45 * total) if rise is None else rise
        annihilation = round(0.1 * total) if annihilation is None else annihilation
        if min(rise, stretch, annihilation) < 0 or rise + stretch + annihilation > total:
            raise ValueError(
                f"rise={rise}, stretch={stretch}, annihilation={annihilation}: each at least 0, together at most "
                f"total={total} samples"
            )
        if not 0 <= final <= initial <= 1:
            raise ValueError(
                f"initial={initial}, final={final}: must be 0 <= final <= initial <= 1, fractions of the peak"
            )
        self.rise, self.stretch, self.annihilation, self.initial = rise, stretch, annihilation, initial
        super().__init__(
            optimizer, batch=batch, total=total, final=final, momentum=momentum, scale_decay=scale_decay,
            batch_rule=batch_rule, last_epoch=last_epoch,
        )  # fmt: skip

    def factor(self, samples: float) -> float:
        return _interpolate(samples, self._corners(self.initial, self.final))

    def cycle(self, samples: float) -> float:
        return _interpolate(samples, self._corners(0.0, 0.0))

    def _corners(self, low: float, last: float) -> list[tuple[float, float]]:
        top, end = self.rise + self.stretch, self.total - self.annihilation
        return [(0, low), (self.rise, 1.0), (top, 1.0), (end, low), (self.total, last)]


def _interpolate(x: float, corners: list[tuple[float, float]]) -> float:
    """Linear interpolation between the corners, constant after the last."""
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        if x < x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return corners[-1][1]


def _set_momentum(group: dict[str, Any], value: float) -> None:
    if "betas" in group:
        group["betas"] = (value, *group["betas"][1:])
    else:
        group["momentum"] = value
