"""The figure of trust ratios of whole and of sharded parameters in docs/optimizers.md."""

from __future__ import annotations

import os
from itertools import accumulate
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from matplotlib.figure import Figure
from torch import Tensor, nn

from bellwether.optimizers import (
    Lamb,
    WarmupLinear,
    groups,
)
from bellwether.optimizers.shards.layout import ParameterInfo, ShardLayout, cut
from bellwether.trainer import rendezvous, store
from scripts.figure_style import BLACK, BLUE, COLOURS, DASHES, SKY


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
    server = store.serve("127.0.0.1")
    ranks = [context.Process(target=_rank, args=(r, world, server.port, steps, queue)) for r in range(world)]
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
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME=rendezvous.loopback())
    dist.init_process_group("gloo", store=store.connect(), rank=rank, world_size=world)
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
        slices = cut(zip(whole, offsets, strict=False), rank * length, (rank + 1) * length)
        shards.append(ShardLayout(part, whole, slices, dist.group.WORLD))
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
