"""Short training loops: torch's DistributedDataParallel, and accelerate's as its documentation has it."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from scripts.bench_train.gate import Gate
from scripts.bench_train.shared import CLIP, LR, PERTURBATIONS, STEPS, Loss, Setup

DDP_BEST: dict[str, Any] = {"gradient_as_bucket_view": True, "static_graph": True}


def ddp(setup: Setup, gate: Gate) -> None:
    """DistributedDataParallel with the masked head and fused AdamW."""
    dist.init_process_group("gloo")
    model = DistributedDataParallel(setup.task(), **(DDP_BEST if setup.best else {}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    gate.save = lambda: _save(setup, model.module, optimizer)
    gate.parameters = model.parameters
    batches = setup.batches()
    gate.open()
    while True:
        gate.after_step(_ddp_step(model, optimizer, next(batches)))


def rounded_otherwise(setup: Setup, gate: Gate) -> None:
    """`ddp` two times, each for `STEPS` updates from weights of which half are larger by one unit in the last place.

    How far its losses are from those of `ddp` is what the order of sums can do to them.
    """
    dist.init_process_group("gloo")
    gate.open()
    for seed in range(PERTURBATIONS):
        task = setup.task()
        perturb(task, seed)
        model = DistributedDataParallel(task)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
        for batch in islice(setup.batches(), STEPS):
            gate.after_step(_ddp_step(model, optimizer, batch))


def perturb(model: torch.nn.Module, seed: int) -> None:
    """Replace each second weight, by chance, by the next larger float."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            larger = torch.nextafter(p, torch.full_like(p, torch.inf))
            p.copy_(torch.where(torch.rand(p.shape, generator=generator) < 0.5, larger, p))


def _ddp_step(model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = model(**batch)[0].mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def accelerate(setup: Setup, gate: Gate) -> None:
    """accelerate's loop; in the first table with the model's own loss and AdamW's defaults, as its examples have them."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    handlers = [DistributedDataParallelKwargs(**DDP_BEST)] if setup.best else []
    accelerator = Accelerator(cpu=True, kwargs_handlers=handlers)
    if accelerator.num_processes != setup.world_size:
        raise RuntimeError(f"accelerate has started {accelerator.num_processes} processes, not {setup.world_size}")
    task = setup.task()
    model = Loss(task) if setup.best else task.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=setup.best or None)
    model, optimizer = accelerator.prepare(model, optimizer)
    batches = setup.batches() if setup.best else setup.as_transformers()
    gate.parameters = model.parameters
    gate.save = lambda: accelerator.save_state(str(setup.folder / "state"))
    gate.open()
    while True:
        loss = _loss_of(model(**next(batches)))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        gate.after_step(loss.detach())


def _loss_of(output: Any) -> Any:
    return output["loss"] if isinstance(output, dict) else output.loss


def _save(setup: Setup, model: Any, optimizer: Any) -> None:
    """Rank 0 writes, the others wait; nothing is synced to the disk."""
    if setup.rank == 0:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, setup.folder / "checkpoint.pt")
    dist.barrier()
