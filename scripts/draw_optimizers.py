#!/usr/bin/env python3
"""Draws the figures of docs/optimizers.md by running the optimizers.

python scripts/draw_optimizers.py                 all, into docs/pictures: a minute on two cores
python scripts/draw_optimizers.py decay --out /tmp --quick
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from bellwether.optimizers import (
    SGD,
    Adam,
    AdamW,
    Lamb,
    Lookahead,
    OneCycle,
    RAdam,
    Trapezoid,
    WarmupCosine,
    WarmupLinear,
    WarmupPolynomial,
    WeightAverage,
    groups,
)
from bellwether.optimizers.shards.layout import ParameterInfo, ShardLayout, cut
from bellwether.optimizers.weight_decay import WeightDecayMode

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, ordered so that their greys differ; lines differ in their dashes too.
COLOURS = BLACK, BLUE, ORANGE, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
SKY = "#56B4E9"
DASHES = ("-", "--", "-.", ":")
STYLE = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 150,
}


# ---- one: learning rate and weight decay

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


# ---- two: trust ratios of whole and sharded parameters


def trust(quick: bool) -> Figure:
    """LAMB's trust ratios during training, and the error of the weights if each rank treats its flat shard as a layer."""
    steps = 10 if quick else 100
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
    model = _net()
    optimizer = Lamb(groups(model), lr=0.02)
    schedule = WarmupLinear(optimizer, batch=1, total=steps, warmup=steps // 10)
    ratios: dict[str, list[float]] = {}
    for step in range(steps):
        _loss(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        for name, ratio in optimizer.trust_ratios().items():
            ratios.setdefault(name, []).append(ratio)
    left.axhspan(0.01, 0.3, color="0.9")
    left.text(2, 0.011, "bounds 0.01 to 0.3", va="bottom")
    for layer, (values, colour, dash) in enumerate(zip(ratios.values(), COLOURS, DASHES, strict=True), 1):
        left.plot(range(1, steps + 1), values, dash, color=colour, label=f"layer {layer}", linewidth=1.8)
    left.set(yscale="log", xlabel="step", title="trust ratio", ylim=(0.008, 5))
    left.legend(loc="lower right", bbox_to_anchor=(1, 0.07))

    for world, colour, dash in zip((2,) if quick else (2, 4, 8), (SKY, BLUE, BLACK), ("-", "--", ":"), strict=False):
        naive, attached = _errors(world, steps)
        right.plot(range(1, steps + 1), naive, dash, color=colour, label=f"{world} shards")
        right.plot(range(1, steps + 1), attached, dash, color=colour)
    # Down to 0, because the bits may be equal.
    right.set_yscale("symlog", linthresh=1e-8, linscale=0.5)
    right.set(
        xlabel="step", title="distance to unsharded weights", ylim=(-2e-9, 3), yticks=[0, 1e-8, 1e-6, 1e-4, 1e-2, 1]
    )
    right.legend(loc="center right", bbox_to_anchor=(1, 0.6))
    right.text(0.03, 0.98, "each flat shard as one layer", transform=right.transAxes, va="top")
    right.text(0.03, 0.05, "attached", transform=right.transAxes)
    return figure


def _net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(16, 96), nn.LayerNorm(96), nn.GELU(), nn.Linear(96, 48), nn.GELU(), nn.Linear(48, 24)]
    return nn.Sequential(*layers, nn.GELU(), nn.Linear(24, 1))


def _loss(model: nn.Module, step: int) -> Tensor:
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(step))
    return nn.functional.mse_loss(model(x), x[:, :4].sin().sum(1, keepdim=True))


def _errors(world: int, steps: int) -> list[list[float]]:
    """Distance to LAMB on whole tensors after each step, relative to the weights: naive, and attached."""
    model = _net()
    optimizer = Lamb(groups(model), lr=0.02)
    wanted = []
    for step in range(steps):
        optimizer.zero_grad()
        _loss(model, step).backward()
        optimizer.step()
        wanted.append(torch.cat([p.detach().reshape(-1) for group in optimizer.param_groups for p in group["params"]]))
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ranks = [context.Process(target=_rank, args=(r, world, port, steps, queue)) for r in range(world)]
    for process in ranks:
        process.start()
    paths = queue.get()
    for process in ranks:
        process.join()
    errors = []
    for path in paths:
        pairs = zip(map(torch.from_numpy, path), wanted, strict=True)
        errors.append([float((found - w).norm() / w.norm()) for found, w in pairs])
    return errors


def _rank(rank: int, world: int, port: int, steps: int, queue: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    paths = [_train_shards(rank, world, steps, naive) for naive in (True, False)]
    if rank == 0:
        queue.put(paths)
    dist.barrier()


def _train_shards(rank: int, world: int, steps: int, naive: bool) -> list[Any]:
    """A small ZeRO-1: each param group is one flat tensor, and the optimizer gets this rank's part of it."""
    model = _net()
    named = groups(model)
    flats, parts, shards, again = [], [], [], []
    for group in named:
        parameters = group["params"]
        flat = torch.cat([p.detach().reshape(-1) for _, p in parameters])
        flat = torch.cat([flat, torch.zeros(-len(flat) % world)])
        offsets = [0, *accumulate(p.numel() for _, p in parameters)]
        for (_, p), offset in zip(parameters, offsets, strict=False):
            p.data = flat[offset : offset + p.numel()].view_as(p)
        length = len(flat) // world
        part = nn.Parameter(flat[rank * length : (rank + 1) * length].clone())
        whole = tuple(ParameterInfo(name, tuple(p.shape)) for name, p in parameters)
        pieces = cut(zip(whole, offsets, strict=False), rank * length, (rank + 1) * length)
        shards.append(ShardLayout(part, whole, pieces, dist.group.WORLD))
        flats.append((flat, offsets[-1]))
        parts.append(part)
        again.append({**group, "params": [part]})
    optimizer = Lamb(again, lr=0.02)
    if not naive:
        optimizer.use_shards(shards)
    found = []
    for step in range(steps):
        model.zero_grad()
        _loss(model, step).backward()
        for group, (flat, _), part in zip(named, flats, parts, strict=True):
            gradient = torch.cat([p.grad.reshape(-1) for _, p in group["params"]])
            gradient = torch.cat([gradient, torch.zeros(len(flat) - len(gradient))])
            part.grad = gradient[rank * len(part) : (rank + 1) * len(part)]
        optimizer.step()
        for (flat, _), part in zip(flats, parts, strict=True):
            dist.all_gather(list(flat.split(len(part))), part.detach())
        found.append(torch.cat([flat[:used] for flat, used in flats]).numpy())
    return found


# ---- three: schedules


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


# ---- four: the first steps, and the last


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


PICTURES: dict[str, Callable[[bool], Figure]] = {f.__name__: f for f in (decay, trust, schedules, early)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(PICTURES)}; all by default")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/pictures")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with plt.rc_context(STYLE):
        for name in arguments.names or PICTURES:
            figure = PICTURES[name](arguments.quick)
            # Without matplotlib's version, so that the file is reproducible.
            file = arguments.out / f"optimizers-{name}.png"
            figure.savefig(file, metadata={"Software": None})
            plt.close(figure)
            Image.open(file).convert("RGB").quantize(96).save(file, optimize=True)  # a third of the bytes


if __name__ == "__main__":
    main()
