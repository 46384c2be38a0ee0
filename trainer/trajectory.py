"""Measures the weights' trajectory while a phase runs: `bellwether.optimizers.Trajectory` at the steps that ``trajectory`` names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from bellwether.optimizers import Trajectory
from bellwether.trainer import buffers
from bellwether.trainer.distributed import World
from bellwether.trainer.engine import Batch, Engine
from bellwether.trainer.phases import Phase

# The heat map of norms by layer has no use for more columns than this in a phase.
_LAYER_LINES = 50


class TrajectoryProbe:
    """Measurements of one phase. Create it before a checkpoint is loaded: the trajectory starts at the initial weights."""

    def __init__(self, engine: Engine, phase: Phase, world: World) -> None:
        self.engine, self.phase, self.world = engine, phase, world
        self.wanted = phase.config.trajectory
        interpolate = self.wanted.interpolate
        measures = self.wanted.every is not None or interpolate.every is not None or bool(interpolate.steps)
        self.trajectory = Trajectory(engine.optimizer) if measures else None
        self.batches: list[Batch] = []
        self.next_layers_step = 0
        self.is_first_step = True  # of this phase or since a resume: no weights are kept yet

    def _measures(self, step: int) -> bool:
        return self.phase.due(step, self.wanted.every)

    def _interpolates(self, step: int) -> bool:
        interpolate = self.wanted.interpolate
        return step in interpolate.steps or self.phase.due(step, interpolate.every)

    def reads(self, step: int) -> bool:
        """Whether `after` reads values of this step, for which it waits for the device."""
        return self.trajectory is not None and (self._measures(step) or self._interpolates(step))

    def before(self, step: int, micro_batches: Iterator[Batch]) -> Iterable[Batch]:
        """To be called before a step with this rank's micro-batches; returns them, kept in memory where they are needed again."""
        if self.trajectory is not None and self.is_first_step:
            self.trajectory.keep()
        self.is_first_step = False
        if not self._interpolates(step):
            return micro_batches
        self.batches = list(micro_batches)
        return self.batches

    def after(self, step: int, step_seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Events for the metrics after a step, without ``step`` and ``samples``. Collective.

        Args:
            step_seed: seed of torch's generator in this step, for the same dropout masks.
        """
        if self.trajectory is None:
            return
        if self._measures(step):
            stride = self.trajectory.read()
            yield "walk", {key: getattr(stride, key) for key in ("distance", "update_norm", "weight_norm", "cosine")}
            if stride.update_norms and step >= self.next_layers_step:
                self.next_layers_step = step + max(1, self.phase.steps // _LAYER_LINES)
                norms = {"update_norms": stride.update_norms, "weight_norms": stride.weight_norms}
                yield "norms", {key: self.engine.in_model_order(by_name) for key, by_name in norms.items()}
        if self._interpolates(step) and self.batches:
            yield "between", {"losses": self._interpolated_losses(step_seed)}
            self.batches = []
        # The update of the next step needs these weights, and so does the angle of the one after that.
        if self._measures(step + 1) or self._interpolates(step + 1) or self._measures(step + 2):
            self.trajectory.keep()
        else:
            self.trajectory.forget()

    @torch.no_grad()
    def _interpolated_losses(self, step_seed: int) -> list[float]:
        """Losses of the step's batch on the line from the weights before the step to those after it.

        Computed as in training: the same dropout masks at each point, and BatchNorm by batch statistics, whose running
        means do not change.
        """
        assert self.trajectory is not None
        points = self.wanted.interpolate.points
        sums = torch.zeros(points, dtype=torch.float64, device=self.world.device)
        devices = [self.world.device] if self.world.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices),
            buffers.preserve_buffers(self.engine.task),
            self.trajectory.between() as move_to,
        ):
            for point in range(points):
                move_to(point / (points - 1))
                torch.manual_seed(step_seed)
                for batch in self.batches:
                    losses, _ = self.engine.forward(batch)
                    sums[point] += losses.mean().double() / len(self.batches)
        dist.all_reduce(sums)
        return [float(loss) for loss in (sums / self.world.size).tolist()]
