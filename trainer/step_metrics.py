"""Takes the steps of a phase and measures them: loss, rates, time, memory, trust ratios."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bellwether.optimizers import NoiseScale
from bellwether.trainer.checkpoint import Position
from bellwether.trainer.config.schema import TextData
from bellwether.trainer.distributed import World
from bellwether.trainer.engine import Engine
from bellwether.trainer.phases import Phase

# Ratios layer by layer are for a picture, which has no use for more columns.
_LAYER_LINES = 50


class StepMetrics:
    """Means since the last `read`. Nothing here waits for the device between two reads.

    Args:
        noise: `state` of the estimate of the gradient noise to go on from.
    """

    def __init__(self, engine: Engine, phase: Phase, world: World, noise: dict[str, float]) -> None:
        self.engine, self.phase, self.world = engine, phase, world
        self.lr = 0.0
        self.next_layers = 0
        self.noise: NoiseScale | None = None
        split = phase.split
        # One micro-batch that is the whole batch has no noise to compare.
        if phase.config.log.noise_scale and split.micro < split.global_batch:
            self.noise = NoiseScale(engine.task, split.micro, split.global_batch)
            self.noise.estimate.load_state(noise)
        self._restart()

    def _restart(self) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=self.world.device)
        self.steps = 0
        self.away = 0.0
        self.began = time.monotonic()

    def step(self, micro_batches: Iterable[dict[str, Tensor]]) -> None:
        """One update: all of this rank's micro-batches of the global batch."""
        self.lr = float(self.engine.schedule.get_last_lr()[0])
        scale = self.engine.scale
        for batch in micro_batches:
            losses, _ = self.engine.deepspeed(**batch)
            # All micro-batches are of one size, so the mean of their means is the global batch's mean.
            loss = losses.mean()
            self.engine.backward(loss * self.phase.config.optimizer.loss_factor)
            self.engine.step()
            self.loss += loss.detach().double() / self.phase.split.accumulation
        if self.noise is not None and self.engine.norm is not None:
            self.noise.step(self.engine.norm, scale)
        # The samples are consumed even where fp16 overflowed and DeepSpeed skipped the update.
        self.engine.schedule.step()
        self.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in here is no training time."""
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()  # work that is still queued is training time
        began = time.monotonic()
        yield
        self.away += time.monotonic() - began

    def read(self, place: Position) -> tuple[dict[str, Any], dict[str, float]]:
        """The values of a train event, and now and then the trust ratio of every parameter. Collective."""
        loss = self.loss / self.steps
        dist.all_reduce(loss)
        mean = loss.item() / self.world.size  # waits for the device: only now is the clock right
        seconds = (time.monotonic() - self.began - self.away) / self.steps
        samples_per_s = self.phase.split.global_batch / seconds
        values: dict[str, Any] = {
            "time": time.time(),
            "step": place.step,
            "samples": place.samples,
            "phase": place.phase,
            "epoch": (place.samples - self.phase.first_sample) / self.phase.epoch,
            "loss": mean,
            "lr": self.lr,
            "samples_per_s": samples_per_s,
            "step_time": seconds,
            "memory_gib": _memory(self.world.device),
        }
        if self.engine.norm is not None:
            values["grad_norm"] = float(self.engine.norm)
        if isinstance(self.phase.config.data, TextData):
            values["tokens_per_s"] = samples_per_s * self.phase.config.data.sequence_length
        if self.noise is not None:
            values.update(self.noise.read())
        ratios = self.engine.optimizer.trust_ratios()
        if ratios:
            ordered = sorted(ratios.values())
            values["trust_ratio"] = {
                "min": ordered[0],
                "median": statistics.median(ordered),
                "max": ordered[-1],
            }
        layers: dict[str, float] = {}
        if ratios and place.step >= self.next_layers:
            layers = self.engine.in_order(ratios)
            self.next_layers = place.step + max(1, self.phase.steps // _LAYER_LINES)
        self._restart()
        return values, layers


def _memory(device: torch.device) -> float:
    """The most this rank has held, in GiB: on the GPU what torch allocated, on the CPU the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
