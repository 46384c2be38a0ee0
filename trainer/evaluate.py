"""Held-out loss and accuracy, exact over ranks and over a short last batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bellwether import optimizers
from bellwether.trainer import buffers
from bellwether.trainer.engine import Engine


@torch.no_grad()
def evaluate(engine: Engine, batches: Iterable[dict[str, Tensor]], device: torch.device) -> dict[str, float]:
    """Mean over the held-out samples of loss and correctness. Collective; the same on all ranks.

    Every rank must bring the same number of batches (ZeRO-3 gathers weights in each forward pass); what only fills
    up a batch has weight 0.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    engine.deepspeed.eval()
    try:
        with buffers.average_buffers(engine.task):
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


def evaluate_average(
    engine: Engine, batches: Iterable[dict[str, Tensor]], training: Iterable[dict[str, Tensor]], device: torch.device
) -> dict[str, float]:
    """`evaluate` with the averaged weights in the model, and BatchNorm's statistics from training batches. Collective.

    Keys end in ``_averaged``; none before any weights were taken. Training goes on as if it had not been.
    """
    optimizer = engine.optimizer
    if not isinstance(optimizer, optimizers.WeightAverage) or not optimizer.has_average:
        return {}
    with buffers.kept(engine.task), optimizer.averaged():
        recompute = ({k: v.to(device) for k, v in batch.items()} for batch in training)
        optimizers.recompute_batch_norm(_Called(engine.deepspeed), recompute)
        found = evaluate(engine, batches, device)
    return {f"{key}_averaged": found[key] for key in ("loss", "accuracy")}


class _Called(nn.Module):
    """A model that takes a batch as one argument."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> object:
        return self.model(**batch)
