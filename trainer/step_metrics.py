"""Averages the values of training steps between two log lines: loss, rates, time, memory, trust ratios, gradient noise."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bellwether.optimizers import NoiseScale
from bellwether.trainer import messages
from bellwether.trainer.checkpoint import Position
from bellwether.trainer.distributed import World
from bellwether.trainer.engine import Engine, StepResult
from bellwether.trainer.phases import Phase, Split

# The heat map of trust ratios by layer has no use for more columns than this in a phase.
_LAYER_LINES = 50


class StepMetrics:
    """Means over the steps since the last `read`. Nothing here waits for the device between two reads.

    Args:
        split: of the step before the next one, or of the first.
        noise: `state` of the gradient noise estimate to resume from; empty to start a new one; None: the noise is not measured,
            because the samples of a micro-batch are not a random part of the global batch.
    """

    def __init__(
        self, engine: Engine, phase: Phase, world: World, split: Split, noise: dict[str, float] | None
    ) -> None:
        self._engine, self._phase, self._world = engine, phase, world
        self._lr = 0.0
        self._grad_norm: float | Tensor | None = None
        self._next_layers_step = 0
        self._noise: NoiseScale | None = None
        # A single micro-batch that is the whole batch has no noise to compare with.
        measured = next((each for each in phase.splits if each.micro < each.global_batch), None)
        if noise is not None and phase.config.log.noise_scale and measured is not None:
            self._noise = NoiseScale(engine.task, measured.micro, measured.global_batch, _noise_interval(phase))
            self._noise.set_batch(split.micro, split.global_batch)
            self._noise.load_state(noise)
        self._restart()

    def _restart(self) -> None:
        self._loss = torch.zeros((), dtype=torch.float64, device=self._world.device)
        self._finite_steps = torch.zeros((), dtype=torch.int64, device=self._world.device)
        self._steps = self._samples = 0
        self._paused_seconds = self._data_seconds = 0.0
        self._started = time.monotonic()

    def set_split(self, split: Split) -> None:
        """Change the batch size between two steps. Collective."""
        if self._noise is not None:
            self._noise.set_batch(split.micro, split.global_batch)

    def add(self, result: StepResult, samples: int) -> None:
        """Take the result of one training step of so many samples."""
        self._steps += 1
        self._samples += samples
        self._loss += result.loss
        self._finite_steps += torch.isfinite(self._loss)
        self._lr, self._grad_norm = result.lr, result.grad_norm
        if self._noise is not None and result.grad_norm is not None:
            self._noise.step(result.grad_norm, result.loss_scale)

    def noise_state(self) -> dict[str, float] | None:
        """State of the gradient noise estimate for a checkpoint; None where the noise is not measured."""
        return self._noise.state() if self._noise else None

    def waited_for_data(self, seconds: float) -> None:
        """Take the time that this rank waited for a micro-batch."""
        self._data_seconds += seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context whose duration does not count as training time."""
        if self._world.device.type == "cuda":
            torch.cuda.synchronize()  # work that is still queued is training time
        started = time.monotonic()
        yield
        self._paused_seconds += time.monotonic() - started

    def read(self, position: Position) -> tuple[dict[str, Any], dict[str, float]]:
        """The values of a train event, and at about 50 steps of a phase every parameter's trust ratio. Collective.

        The ratios are keyed by parameter name in the model's order; at the other steps they are empty.
        """
        loss = self._loss / self._steps
        dist.all_reduce(loss)
        mean_loss = loss.item() / self._world.size  # waits for the device: only after this is the clock right
        seconds = (time.monotonic() - self._started - self._paused_seconds) / self._steps
        samples_per_s = self._samples / self._steps / seconds
        values: dict[str, Any] = {
            "time": time.time(),
            "step": position.step,
            "samples": position.samples,
            "phase": position.phase,
            "batch": self._phase.split_at(position.step).global_batch,
            "epoch": (position.samples - self._phase.first_sample) / self._phase.epoch,
            "loss": mean_loss,
            "lr": self._lr,
            "samples_per_s": samples_per_s,
            "step_time": seconds,
            "data_time": self._data_seconds / self._steps,
            "data_wait": self._data_seconds / self._steps / seconds,
            "memory_gib": _peak_memory_gib(self._world.device),
        }
        if self._grad_norm is not None:
            values["grad_norm"] = float(self._grad_norm)
        tokens = self._phase.config.data.tokens_per_sample
        if tokens is not None:
            values["tokens_per_s"] = samples_per_s * tokens
        if self._noise is not None:
            values.update(self._noise.read())
        trust_ratios = self._engine.optimizer.trust_ratios()
        if trust_ratios:
            values["trust_ratio"] = _summary(trust_ratios)
        self._finite_before_read = self._finite_steps
        self._restart()
        return values, self._layers(position.step, trust_ratios)

    def ranks_first_not_finite(self) -> list[int]:
        """The ranks whose loss was not finite at an earlier step than that of the others, between the last two reads. Collective."""
        counts = messages.all_gather_values(int(self._finite_before_read), self._world.device)
        return [rank for rank, count in enumerate(counts) if count == min(counts)] if len(set(counts)) > 1 else []

    def _layers(self, step: int, trust_ratios: dict[str, float]) -> dict[str, float]:
        if not trust_ratios or step < self._next_layers_step:
            return {}
        self._next_layers_step = step + max(1, self._phase.steps // _LAYER_LINES)
        return self._engine.in_model_order(trust_ratios)


def _noise_interval(phase: Phase) -> int:
    """Steps between two measurements of the gradient noise: by default 2,000 or more of them in a phase, and at least each 10th step."""
    given = phase.config.log.noise_scale_every
    return given if given is not None else min(10, max(1, phase.steps // 2000))


def _summary(trust_ratios: dict[str, float]) -> dict[str, float]:
    ordered = sorted(trust_ratios.values())
    return {"min": ordered[0], "median": statistics.median(ordered), "max": ordered[-1]}


def _peak_memory_gib(device: torch.device) -> float:
    """Peak memory of this rank: on a GPU what torch has allocated, on a CPU the resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
