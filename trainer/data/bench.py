"""Measures how fast a config's training data become batches, and what the time goes to."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from bellwether.trainer.config import Config
from bellwether.trainer.data import Samples, arranged, load
from bellwether.trainer.data.loader import order_of, train_batches
from bellwether.trainer.data.sampling import sample_keys

_MICRO = 64  # samples of a batch, at most


@dataclass(frozen=True)
class LoaderSpeed:
    """What `measure` has found.

    Attributes:
        samples_per_second: with `workers` processes, or in this process without any.
        samples_per_core_second: of one core, in this process.
        bytes_per_sample: sent to the training process, and from there to its device.
        stages: share of the time of one core by stage.
        micro: samples of a batch.
        samples: measured in each of the two parts.
    """

    samples_per_second: float
    samples_per_core_second: float
    bytes_per_sample: int
    stages: dict[str, float]
    workers: int
    micro: int
    samples: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Stopwatch:
    """Adds up the time spent in named stages.

    >>> clock = Stopwatch()
    >>> with clock("decode"):
    ...     pass
    >>> list(clock.seconds)
    ['decode']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - began


def measure(config: Config, seconds: float = 5.0) -> LoaderSpeed:
    """Measures the training data of a config.

    Args:
        seconds: duration of each of the two parts: one core in this process, and all workers.

    Raises:
        ConfigError: if the data cannot be read.
    """
    samples = load(config.data).train
    micro = max(min(_MICRO, *config.batch.all_sizes) // config.data.unit, 1) * config.data.unit
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        stages, rate, size, count = _one_core(samples, micro, seconds)
        overall = _with_workers(samples, micro, config.data.workers, rate, seconds)
    finally:
        torch.set_num_threads(threads)
    total = sum(stages.values())
    shares = {name: round(spent / total, 4) for name, spent in stages.items()}
    return LoaderSpeed(round(overall, 1), round(rate, 1), size, shares, config.data.workers, micro, count)


def _one_core(samples: Samples, micro: int, seconds: float) -> tuple[dict[str, float], float, int, int]:
    samples = arranged(samples, micro)
    order, clock = order_of(samples, 0), Stopwatch()
    stages = hasattr(samples, "timed")
    make = getattr(samples, "worker_batch", samples.batch)
    size = count = 0
    began, cpu = time.monotonic(), time.process_time()
    try:
        for position in range(0, 2**62, micro):
            if position == micro:  # the first batch opens files and imports modules
                if stages:
                    samples.timed = clock  # type: ignore[attr-defined]
                began, cpu, count = time.monotonic(), time.process_time(), 0
            positions = np.arange(position, position + micro)
            with clock("batch"):
                batch = make(order(positions), sample_keys(0, positions))
            size = sum(tensor.numel() * tensor.element_size() for tensor in batch.values()) // micro
            count += micro
            if position and time.monotonic() - began >= seconds:
                break
        cpu = time.process_time() - cpu
    finally:
        if stages:
            del samples.timed  # type: ignore[attr-defined]
    spent = dict(clock.seconds)
    whole = spent.pop("batch")
    spent["other"] = max(0.0, whole - sum(spent.values()))
    return spent, count / cpu, size, count


def _with_workers(samples: Samples, micro: int, workers: int, rate: float, seconds: float) -> float:
    """Samples a second, after each worker has delivered its first batches."""
    warm_up = max(4 * workers, 1)
    steps = warm_up + max(4, int(rate * max(workers, 1) * seconds / micro))
    batches = train_batches(
        samples, seed=1, start=0, steps=steps, global_batch=micro, micro=micro, accumulation=1, rank=0, world_size=1,
        workers=workers,
    )  # fmt: skip
    for _ in range(warm_up):
        next(batches)
    began, count = time.monotonic(), 0
    for _ in batches:
        count += micro
        if time.monotonic() - began >= seconds:
            break
    spent = time.monotonic() - began
    batches.close()  # type: ignore[attr-defined]
    return count / spent
