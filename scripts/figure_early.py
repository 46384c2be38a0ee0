"""The figure of the first steps of Adam and RAdam, and of Lookahead and SWA around a minimum, in docs/optimizers.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from bellwether.optimizers import (
    SGD,
    Adam,
    Lookahead,
    RAdam,
    WeightAverage,
)
from scripts.figure_style import BLACK, BLUE, ORANGE


def early(quick: bool) -> Figure:
    """Adam's and RAdam's first steps on noise; Lookahead and SWA around a minimum."""
    steps = 30 if quick else 2000
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
    kinds = {
        "Adam": (Adam, 0.999, BLACK, "-"),
        "RAdam": (RAdam, 0.999, BLUE, "--"),
        "RAdam, beta2 0.99": (RAdam, 0.99, ORANGE, "-."),
    }
    for name, (kind, beta2, colour, dash) in kinds.items():
        weights = nn.Parameter(torch.zeros(2000, dtype=torch.float64))
        optimizer = kind([weights], lr=1.0, betas=(0.9, beta2))
        generator = torch.Generator().manual_seed(0)
        sizes = []
        for _ in range(steps):
            before = weights.detach().clone()
            weights.grad = 0.01 * torch.randn(2000, generator=generator, dtype=torch.float64)
            optimizer.step()
            sizes.append(float((weights.detach() - before).square().mean().sqrt()))
        left.plot(range(1, steps + 1), sizes, dash, color=colour, label=name, linewidth=1.8)
    left.set(xscale="log", yscale="log", xlabel="step", title="size of a step / lr")
    left.legend(loc="lower right")
    _paths(right, 20 if quick else 120)
    return figure


def _paths(axis: Axes, steps: int) -> None:
    scales = torch.tensor([1.0, 6.0])
    makers: dict[str, tuple[Callable[[nn.Parameter], Any], str, dict[str, Any]]] = {
        "SGD": (_sgd, "SGD", dict(color="0.7", linewidth=0.8)),
        "Lookahead": (
            lambda p: Lookahead(_sgd(p), k=5),
            "Lookahead, slow",
            dict(color=BLUE, marker=".", linewidth=1.2),
        ),
        "SWA": (lambda p: WeightAverage(_sgd(p), start=20), "SWA from step 20", dict(color=BLACK, linewidth=2.2)),
    }
    for name, (make, label, style) in makers.items():
        weights = nn.Parameter(torch.tensor([-3.0, 1.6]))
        optimizer = make(weights)
        generator = torch.Generator().manual_seed(4)
        path = [weights.detach().clone()]
        for step in range(1, steps + 1):
            weights.grad = scales * weights.detach() + 3 * torch.randn(2, generator=generator)
            optimizer.step()
            state = optimizer.state[weights]
            if name == "SGD":
                path.append(weights.detach().clone())
            elif name == "Lookahead" and step % 5 == 0:
                path.append(state["slow"].clone())
            elif name == "SWA" and "average" in state:
                path.append(state["average"].clone())
        x, y = torch.stack(path[1:] if name == "SWA" and len(path) > 1 else path).T.tolist()
        axis.plot(x, y, label=label, **style)
    axis.plot(0, 0, "+", color=ORANGE, markersize=14, markeredgewidth=2.5)
    axis.set(title="weights around a minimum", xticks=[], yticks=[])
    axis.legend(loc="upper right", borderpad=0)
    axis.set_ylim(top=3.2)


def _sgd(parameter: nn.Parameter) -> SGD:
    return SGD([parameter], lr=0.15)
