"""Times the engine's training step on random batches, without the loader: rate, kernels, idle share, memory, losses."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bellwether.trainer import models
from bellwether.trainer.config import Config, validate
from bellwether.trainer.data import Dataset
from bellwether.trainer.distributed import World
from bellwether.trainer.engine import Batch, Engine, build, partitioned
from bellwether.trainer.memory.activations import DummySamples
from bellwether.trainer.phases import plan
from scripts.measurements import Spread, idle_share

CLASSES = 1000
ROWS = 1_000_000  # of the imagined data, for durations in epochs


def dataset(config: Config) -> Dataset:
    """What a model has to know of data that do not exist."""
    samples = DummySamples(config.data, ROWS)
    if config.data.kind == "text":
        return Dataset(samples, samples, vocabulary_size=config.data.vocabulary_size)  # type: ignore[attr-defined]
    labels = [str(index) for index in range(CLASSES)]
    return Dataset(samples, samples, classes=CLASSES, channels=len(config.data.mean), labels=labels)  # type: ignore[attr-defined]


def random_batch(config: Config, count: int, seed: int, device: torch.device | str = "cpu") -> Batch:
    """A batch with the shapes and types of a real one. Equal numbers everywhere would be unlike training for an embedding's gradient."""
    generator = torch.Generator().manual_seed(seed)
    batch: Batch = {}
    for name, zeros in config.data.zeros(count).items():
        if name == "masked_positions":
            length = config.data.sequence_length  # type: ignore[attr-defined]
            order = torch.rand(count, length, generator=generator).argsort(1)
            batch[name] = order[:, : zeros.shape[1]].sort(1).values
        elif zeros.dtype == torch.int64:
            high = config.data.vocabulary_size if config.data.kind == "text" else CLASSES  # type: ignore[attr-defined]
            batch[name] = torch.randint(high, zeros.shape, generator=generator)
        elif zeros.dtype == torch.uint8:
            batch[name] = torch.randint(256, zeros.shape, generator=generator, dtype=torch.uint8)
        else:
            batch[name] = torch.randn(zeros.shape, generator=generator)
    return {name: tensor.to(device) for name, tensor in batch.items()}


@dataclass
class StepTimes:
    """What `measure` has found; None where the device or the config has no such number.

    Attributes:
        step: seconds of an update.
        kernels: on the device, in a micro-batch of an update.
        idle: share of the time of an update in which the device computes nothing, while it is profiled.
        peak: bytes that torch's allocator held.
        losses: of the first updates.
        first: seconds from the start of the first update to its end, with everything that is compiled.
    """

    step: Spread
    samples: int
    kernels: float | None = None
    idle: float | None = None
    peak: int | None = None
    losses: list[float] = field(default_factory=list)
    first: float = 0.0

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.step.median


@contextmanager
def engine(raw: dict[str, Any], world: World) -> Iterator[tuple[Engine, Config]]:
    """The engine of a config, with weights from its seed."""
    config = validate({"name": "gpu-suite", "duration": "1000 steps", **raw})
    (phase,) = plan([config], world.size, [ROWS])
    torch.manual_seed(config.seed)
    with partitioned(phase):
        task = models.build(
            config.model, dataset(config), activation_checkpointing=config.engine.activation_checkpointing
        )
    built = build(task, phase, world)
    try:
        yield built, config
    finally:
        built.destroy()


def measure(
    raw: dict[str, Any], world: World, *, count: int, warmup: int = 4, profiled: int = 0,
    batches: Callable[[Config], Iterator[Batch]] | None = None,
) -> StepTimes:  # fmt: skip
    """Time updates of a config.

    Args:
        count: updates to time, after ``warmup`` others, at least one.
        profiled: updates to profile after these.
        batches: endless micro-batches on the device; None: four random ones by turns.
    """
    on_gpu = world.device.type == "cuda"
    held = 0
    if on_gpu:
        gc.collect()  # an earlier engine is held by cycles
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    with engine(raw, world) as (built, config):
        micro, accumulation = _split(config, world)
        source = _random(config, micro, world.device) if batches is None else batches(config)

        def step() -> Tensor:
            return built.train_step(next(source) for _ in range(accumulation)).loss

        began = time.perf_counter()
        losses = [step()]
        first = float(losses[0])
        elapsed = time.perf_counter() - began
        losses += [step() for _ in range(warmup - 1)]
        times = _times(step, count, world.device, losses)
        found = StepTimes(
            Spread.of(times), max(config.batch.all_sizes), losses=[first, *map(float, losses[1:])], first=elapsed
        )
        if on_gpu:
            found.peak = torch.cuda.max_memory_allocated() - held
            if profiled:
                found.kernels, found.idle = _profile(step, profiled, accumulation)
    return found


def _split(config: Config, world: World) -> tuple[int, int]:
    from bellwether.trainer.phases import split

    shares = split(max(config.batch.all_sizes), config.batch.micro, world.size)
    return shares.micro, shares.accumulation


def _random(config: Config, micro: int, device: torch.device) -> Iterator[Batch]:
    kept = [random_batch(config, micro, seed, device) for seed in range(4)]
    while True:
        yield from kept


def _times(step: Callable[[], Tensor], count: int, device: torch.device, losses: list[Tensor]) -> list[float]:
    from scripts.gpu_suite.machine import seconds

    return seconds(lambda: losses.append(step()), device, count, warmup=0)


def _profile(step: Callable[[], Tensor], count: int, accumulation: int) -> tuple[float, float]:
    """Kernels of a micro-batch and the idle share, by torch's profiler."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(count):
            step()
        torch.cuda.synchronize()
    ranges = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or []
        # An annotation lasts from its first kernel to its last one.
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    return len(ranges) / (count * accumulation), idle_share(ranges)
