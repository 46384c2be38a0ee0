"""Held-out loss and accuracy, exact over ranks and over a short last batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from trainer import buffers
from trainer.engine import Engine


@torch.no_grad()
def evaluate(engine: Engine, batches: Iterable[dict[str, Tensor]], device: torch.device) -> dict[str, float]:
    """Mean over the held-out samples of loss and correctness. Collective; the same on all ranks.

    Every rank must bring the same number of batches (ZeRO-3 gathers weights in each forward pass); what only fills
    up a batch has weight 0.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    engine.deepspeed.eval()
    try:
        with buffers.agreed(engine.task):
            for batch in batches:
                on_device = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
                weight = on_device.pop("weight").double()
                losses, correct = engine.deepspeed(**on_device)
                sums += torch.stack([(losses.double() * weight).sum(), (correct.double() * weight).sum(), weight.sum()])
    finally:
        engine.deepspeed.train()
    dist.all_reduce(sums)
    loss, correct, count = sums.tolist()
    return {"loss": loss / count, "accuracy": correct / count, "examples": int(count)}
