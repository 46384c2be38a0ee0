"""The figure of learning rate and weight decay in docs/optimizers.md."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from bellwether.optimizers import (
    AdamW,
    WarmupCosine,
)
from bellwether.optimizers.weight_decay import WeightDecayMode

# The powers of ten to try, for each mode.
RANGES: dict[WeightDecayMode, tuple[float, float]] = {
    "l2": (-3.0, 1.0),
    "decoupled": (-1.5, 2.0),
    "independent": (-3.0, 0.0),
}


def decay(quick: bool) -> Figure:
    """Held-out loss of a small net on noisy samples, over learning rate and decay, after a short and a long run."""
    count, few, many = (4, 10, 20) if quick else (12, 60, 600)
    rates = torch.logspace(-3, 0, count).tolist()
    figure, axes = plt.subplots(2, 3, figsize=(7, 5.2), layout="constrained", sharex=True, sharey="col")
    for row, steps in zip(axes, (few, many), strict=True):
        for axis, (form, (low, high)) in zip(row, RANGES.items(), strict=True):
            strengths = torch.logspace(low, high, count).tolist()
            x, y = 1.5 / (count - 1), 0.5 * (high - low) / (count - 1)  # half a cell: settings are in the middles
            settings = [(rate, strength) for strength in strengths for rate in rates]
            losses = torch.tensor(_held_out(form, settings, steps)).view(count, count)
            image = axis.imshow(
                (losses / losses.min()).clamp(max=4).numpy(), origin="lower", aspect="auto", cmap="cividis_r",
                extent=(-3 - x, x, low - y, high + y), vmin=1, vmax=3,
            )  # fmt: skip
            axis.set_xticks([-3, -2, -1, 0])
            if steps == few:
                axis.set_title(form)
            else:
                axis.set_xlabel("log10 lr")
        row[0].set_ylabel(f"{steps} steps\nlog10 decay")
    figure.colorbar(image, ax=axes, label="held-out loss / best", extend="max", aspect=40, ticks=[1, 2, 3])
    return figure


def _held_out(form: WeightDecayMode, settings: list[tuple[float, float]], steps: int) -> list[float]:
    """Final held-out loss of one net for each (lr, decay), all trained at once on the same samples, a param group each."""
    generator = torch.Generator().manual_seed(0)
    inputs, hidden, samples, nets = 12, 32, 64, len(settings)
    teacher = torch.randn(inputs, 1, generator=generator) / math.sqrt(inputs)

    def truth(x: Tensor) -> Tensor:
        return (2 * x @ teacher).tanh()

    x = torch.randn(samples, inputs, generator=generator)
    y = truth(x) + torch.randn(samples, 1, generator=generator)
    fresh = torch.randn(512, inputs, generator=generator)
    start = [  # three times the usual size, so that there is something to decay
        3 * torch.randn(inputs, hidden, generator=generator) / math.sqrt(inputs),
        torch.zeros(1, hidden),
        3 * torch.randn(hidden, 1, generator=generator) / math.sqrt(hidden),
    ]
    stacked = [tensor.repeat(nets, 1, 1).requires_grad_() for tensor in start]
    each = [[nn.Parameter(tensor.detach()[i]) for tensor in stacked] for i in range(nets)]  # views

    def forward(x: Tensor) -> Tensor:
        return (x @ stacked[0] + stacked[1]).relu() @ stacked[2]

    optimizer = AdamW(  # weight_decay_mode="l2" makes it Adam
        [{"params": p, "lr": lr, "weight_decay": strength} for p, (lr, strength) in zip(each, settings, strict=True)],
        weight_decay_mode=form,
    )
    schedule = WarmupCosine(optimizer, batch=1, total=steps)
    for _ in range(steps):
        batch = torch.randint(samples, (16,), generator=generator)
        gradients = torch.autograd.grad((forward(x[batch]) - y[batch]).square().mean((1, 2)).sum(), stacked)
        for i, parameters in enumerate(each):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient[i]
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return (forward(fresh) - truth(fresh)).square().mean((1, 2)).nan_to_num(math.inf).tolist()
