"""Held-out loss and accuracy, exact over all ranks and with a short last batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from bellwether import optimizers
from bellwether.optimizers.average_swap import AverageSwap
from bellwether.trainer import buffers
from bellwether.trainer.config import Config
from bellwether.trainer.data import Dataset, Samples, image_samples
from bellwether.trainer.data.loader import evaluation_batches, evaluation_rows, train_batches
from bellwether.trainer.data.sampling import fold_in
from bellwether.trainer.distributed import World, run_on_rank0
from bellwether.trainer.engine import Batch, Engine
from bellwether.trainer.held_out_means import HeldOutMeans
from bellwether.trainer.metrics_format import of_set_named
from bellwether.trainer.phases import Phase

if TYPE_CHECKING:
    from bellwether.trainer.data import Scorer


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
        ``loss``, ``accuracy`` and ``examples``, ``perplexity`` of a language model; where configured also ``loss_augmented``, ``accuracy_augmented``,
        ``loss_averaged`` and ``accuracy_averaged``; and the dataset's scores. With several sets of held-out data
        also ``loss_NAME``, ``accuracy_NAME`` and scores of each; the plain ones are those of the first. No accuracy where it is not defined.
        The same on all ranks.
    """
    config, split = phase.config, phase.split
    rank: dict[str, Any] = {"rank": world.rank, "world_size": world.size, "device": world.device}

    def held_out(samples: Samples) -> Iterator[Batch]:
        return watched(
            evaluation_batches(
                samples, limit=config.evaluate.limit, micro=split.micro, workers=config.data.workers, **rank
            )
        )

    def measured(samples: Samples, scorer: Scorer | None) -> dict[str, float]:
        rows = evaluation_rows(len(samples), config.evaluate.limit)
        score = None if scorer is None else lambda predictions: scorer(predictions, rows)
        return evaluate(engine, held_out(samples), world, score)

    training_batches = train_batches(
        dataset.train, seed=fold_in(config.seed, phase.index), start=0,
        steps=max(1, min(config.averaging.batch_norm, phase.epoch) // split.global_batch),
        global_batch=split.global_batch, micro=split.micro, accumulation=split.accumulation, workers=0, **rank,
    )  # fmt: skip
    with _trained_weights(engine, training_batches):
        results = measured(dataset.validation, dataset.score)
        for index, (name, samples) in enumerate(dataset.held_out.items()):
            of_set = measured(samples, dataset.set_scores.get(name)) if index else dict(results)
            results |= of_set_named(name, of_set)
        results |= _of_views(engine, dataset, config, held_out, world)
    return results | evaluate_average(engine, held_out(dataset.validation), training_batches, world)


def _of_views(
    engine: Engine,
    dataset: Dataset,
    config: Config,
    held_out: Callable[[Samples], Iterator[Batch]],
    world: World,
) -> dict[str, float]:
    """Loss and accuracy with test-time augmentation, where it is configured. Collective."""
    if not config.evaluate.augment:
        return {}
    assert isinstance(dataset.validation, image_samples.ImageSamples)
    views = image_samples.AugmentedViews(dataset.validation, config.evaluate.augment, config.seed)
    augmented = evaluate(engine, held_out(views), world)
    return {f"{name}_augmented": augmented[name] for name in ("loss", "accuracy")}


@torch.no_grad()
def evaluate(
    engine: Engine,
    batches: Iterable[Batch],
    world: World,
    score: Callable[[npt.NDArray[Any]], dict[str, float]] | None = None,
) -> dict[str, float]:
    """Mean loss and accuracy over the held-out samples, and scores of all predictions. Collective; the same on all ranks.

    Args:
        batches: on the device; as many on every rank, because ZeRO-3 gathers weights in each forward pass. The entry ``weight``,
            [B], is 0 for a sample that only fills up its batch, and the share of a whole window for one of a stream.
        score: scores of the predictions [N, ...] for all held-out samples in order; called on rank 0.
    """
    means = HeldOutMeans(len(getattr(engine.task, "further_losses", ())), world.device)
    predictions: list[Tensor] = []
    with engine.evaluation_mode(), buffers.average_buffers(engine.task):
        for batch in batches:
            inputs = {name: tensor for name, tensor in batch.items() if name != "weight"}
            predictions += means.add(batch["weight"], engine.forward(inputs))
    means.all_reduce()
    results = means.results(engine.results)
    if score is None or not predictions:
        return results
    gathered = _gather(torch.stack(predictions), world)
    return results | run_on_rank0(world, lambda: score(gathered[: means.count]))


def _gather(predictions: Tensor, world: World) -> npt.NDArray[Any]:
    """The predictions of all ranks in the order of the samples, on rank 0; on the others nothing. Collective.

    Args:
        predictions: of this rank's batches, [batches, B, ...]. `evaluation_batches` deals the samples to ranks batch by batch.
    """
    parts = [torch.empty_like(predictions) for _ in range(world.size)] if world.is_main else None
    dist.gather(predictions, parts)
    if parts is None:
        return np.empty(0)
    return torch.stack(parts, dim=1).flatten(0, 2).cpu().numpy()


@contextmanager
def _trained_weights(engine: Engine, training_batches: Iterable[Batch]) -> Iterator[None]:
    """Context in which the model has the weights that training results in, with their BatchNorm statistics. Collective.

    They are the weights, but for an optimizer that takes gradients elsewhere (`bellwether.optimizers.AdamWScheduleFree`).
    Afterwards weights and statistics are those from before, bit for bit.
    """
    optimizer = engine.optimizer
    if not (isinstance(optimizer, AverageSwap) and optimizer.replaces_weights and optimizer.has_average):
        yield
        return
    with _averaged(engine, optimizer, training_batches):
        yield


@contextmanager
def _averaged(engine: Engine, optimizer: AverageSwap, training_batches: Iterable[Batch]) -> Iterator[None]:
    with buffers.preserve_buffers(engine.task), optimizer.averaged():
        engine.recompute_batch_norm(training_batches)
        yield


def evaluate_average(
    engine: Engine, batches: Iterable[Batch], training_batches: Iterable[Batch], world: World
) -> dict[str, float]:
    """`evaluate` with the averaged weights in the model and BatchNorm statistics from training batches. Collective.

    Afterwards weights and statistics are those from before, bit for bit.

    Returns:
        ``loss_averaged``, ``accuracy_averaged`` and so on; empty without an average, or before it holds any weights.
    """
    optimizer = engine.optimizer
    if not isinstance(optimizer, optimizers.WeightAverage) or not optimizer.has_average:
        return {}
    with _averaged(engine, optimizer, training_batches):
        results = evaluate(engine, batches, world)
    return {f"{name}_averaged": results[name] for name in ("loss", "accuracy", "perplexity") if name in results}
