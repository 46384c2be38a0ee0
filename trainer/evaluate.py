"""Held-out loss and accuracy, exact over all ranks and with a short last batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from bellwether import optimizers
from bellwether.trainer import buffers
from bellwether.trainer.data import Dataset, Samples, image_samples
from bellwether.trainer.data.loader import evaluation_batches, train_batches
from bellwether.trainer.data.sampling import fold_in
from bellwether.trainer.distributed import World
from bellwether.trainer.engine import Batch, Engine
from bellwether.trainer.phases import Phase


def evaluate_phase(
    engine: Engine,
    phase: Phase,
    dataset: Dataset,
    world: World,
    watched: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
) -> dict[str, float]:
    """All that the config evaluates: plain, with test-time augmentation, and with averaged weights. Collective.

    Args:
        watched: wraps the batches of each evaluation.

    Returns:
        ``loss``, ``accuracy`` and ``examples``; where configured also ``loss_augmented``, ``accuracy_augmented``,
        ``loss_averaged`` and ``accuracy_averaged``. The same on all ranks.
    """
    config, split = phase.config, phase.split
    rank: dict[str, Any] = {"rank": world.rank, "world_size": world.size}

    def held_out(samples: Samples) -> Iterator[Batch]:
        return watched(
            evaluation_batches(
                samples, limit=config.evaluate.limit, micro=split.micro, workers=config.data.workers, **rank
            )
        )

    results = evaluate(engine, held_out(dataset.validation), world.device)
    if config.evaluate.augment:
        assert isinstance(dataset.validation, image_samples.ImageSamples)
        views = image_samples.AugmentedViews(dataset.validation, config.evaluate.augment, config.seed)
        augmented = evaluate(engine, held_out(views), world.device)
        results |= {f"{name}_augmented": augmented[name] for name in ("loss", "accuracy")}
    training_batches = train_batches(
        dataset.train, seed=fold_in(config.seed, phase.index), start=0,
        steps=max(1, min(config.averaging.batch_norm, phase.epoch) // split.global_batch),
        global_batch=split.global_batch, micro=split.micro, accumulation=split.accumulation, workers=0, **rank,
    )  # fmt: skip
    return results | evaluate_average(engine, held_out(dataset.validation), training_batches, world.device)


@torch.no_grad()
def evaluate(engine: Engine, batches: Iterable[Batch], device: torch.device) -> dict[str, float]:
    """Mean loss and accuracy over the held-out samples. Collective; the same on all ranks.

    Args:
        batches: as many on every rank, because ZeRO-3 gathers weights in each forward pass. The entry ``weight``, [B], is 0
            for a sample that only fills up its batch.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    with engine.evaluation_mode(), buffers.average_buffers(engine.task):
        for batch in batches:
            on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            weight = on_device.pop("weight").double()
            losses, correct = engine.forward(on_device)
            sums += torch.stack([(losses.double() * weight).sum(), (correct.double() * weight).sum(), weight.sum()])
    dist.all_reduce(sums)
    loss, correct_count, count = sums.tolist()
    return {"loss": loss / count, "accuracy": correct_count / count, "examples": int(count)}


def evaluate_average(
    engine: Engine, batches: Iterable[Batch], training_batches: Iterable[Batch], device: torch.device
) -> dict[str, float]:
    """`evaluate` with the averaged weights in the model and BatchNorm statistics from training batches. Collective.

    Afterwards weights and statistics are those from before, bit for bit.

    Returns:
        ``loss_averaged`` and ``accuracy_averaged``; empty without an average, or before it holds any weights.
    """
    optimizer = engine.optimizer
    if not isinstance(optimizer, optimizers.WeightAverage) or not optimizer.has_average:
        return {}
    with buffers.preserve_buffers(engine.task), optimizer.averaged():
        engine.recompute_batch_norm({name: t.to(device) for name, t in batch.items()} for batch in training_batches)
        results = evaluate(engine, batches, device)
    return {f"{name}_averaged": results[name] for name in ("loss", "accuracy")}
