"""The figure of learning rate schedules in docs/optimizers.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import nn

from bellwether.optimizers import (
    AdamW,
    OneCycle,
    Trapezoid,
    WarmupCosine,
    WarmupLinear,
    WarmupPolynomial,
)
from scripts.figure_style import COLOURS, DASHES


def schedules(quick: bool) -> Figure:
    """Learning rate and momentum over a run of 100 updates."""
    total = 20 if quick else 200
    figure = plt.figure(figsize=(7, 4.2), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 2))
    left, right, below = (figure.add_subplot(cell) for cell in (grid[:, 0], grid[0, 1], grid[1, 1]))
    share: dict[str, Any] = {"batch": 1, "total": total, "warmup": total // 10}
    falling: dict[str, Callable[[Any], Any]] = {
        "WarmupLinear": lambda o: WarmupLinear(o, **share),
        "WarmupPolynomial, 0.5": lambda o: WarmupPolynomial(o, power=0.5, **share),
        "WarmupCosine": lambda o: WarmupCosine(o, **share),
        "Trapezoid": lambda o: Trapezoid(o, cooldown=total * 3 // 10, **share),
    }
    cycles: dict[str, Callable[[Any], Any]] = {
        "1cycle": lambda o: OneCycle(o, batch=1, total=total),
        "for language models": lambda o: OneCycle(o, batch=1, total=total, rise=total // 10, stretch=total // 2),
    }
    x = [(i + 0.5) / total for i in range(total)]
    for axis, family in ((left, falling), (right, cycles)):
        for (name, make), colour, dash in zip(family.items(), COLOURS, DASHES, strict=False):
            rates, momenta = zip(*_curve(make, total), strict=True)
            axis.plot(x, rates, dash, color=colour, label=name, linewidth=1.8)
            if axis is right:
                below.plot(x, momenta, dash, color=colour, linewidth=1.8)
    for axis, top in ((left, 1.6), (right, 1.9)):
        axis.set(title="lr / peak", ylim=(0, top), yticks=[0, 0.5, 1])
        axis.legend(loc="upper left")
    left.set_xlabel("share of the run")
    below.set(title="beta1", ylim=(0.83, 0.97), xlabel="share of the run")
    return figure


def _curve(make: Callable[[Any], Any], total: int) -> Iterator[tuple[float, float]]:
    optimizer = AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(optimizer)
    for _ in range(total):
        yield optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"][0]
        optimizer.step()
        schedule.step()
