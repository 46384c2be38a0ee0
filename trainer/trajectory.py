"""A walk over the loss, measured while a phase runs: `bellwether.optimizers.trajectory`, at the steps that the config's `trajectory` names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bellwether.optimizers import Trajectory
from bellwether.trainer import buffers
from bellwether.trainer.distributed import World
from bellwether.trainer.engine import Engine
from bellwether.trainer.phases import Phase

# Norms layer by layer are for a picture, which has no use for more columns.
_LAYER_LINES = 50

Batch = dict[str, Tensor]


class TrajectoryProbe:
    """Make it before a checkpoint is read: the walk begins at the weights that the seed gives."""

    def __init__(self, engine: Engine, phase: Phase, world: World) -> None:
        self.engine, self.phase, self.world = engine, phase, world
        self.wanted = phase.config.trajectory
        between = self.wanted.interpolate
        watches = self.wanted.every is not None or between.every is not None or bool(between.steps)
        self.walk = Trajectory(engine.optimizer) if watches else None
        self.batches: list[Batch] = []
        self.next_layers = 0
        self.fresh = True  # nothing is kept yet of this phase, or since a resume

    def _measures(self, step: int) -> bool:
        return self.phase.due(step, self.wanted.every)

    def _interpolates(self, step: int) -> bool:
        between = self.wanted.interpolate
        return step in between.steps or self.phase.due(step, between.every)

    def watched(self, step: int, micro_batches: Iterator[Batch]) -> Iterable[Batch]:
        """This rank's micro-batches of a step, about to be taken; those that are needed once more stay in memory."""
        if self.walk is not None and self.fresh:
            self.walk.keep()
        self.fresh = False
        if not self._interpolates(step):
            return micro_batches
        self.batches = list(micro_batches)
        return self.batches

    def after(self, step: int, drawn: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Events for the metrics, without step and samples. Collective.

        Args:
            drawn: what torch's generator was seeded with for this step, for the same dropout.
        """
        if self.walk is None:
            return
        if self._measures(step):
            stride = self.walk.read()
            yield "walk", {key: getattr(stride, key) for key in ("distance", "update_norm", "weight_norm", "cosine")}
            if stride.update_norms and step >= self.next_layers:
                self.next_layers = step + max(1, self.phase.steps // _LAYER_LINES)
                norms = {"update_norms": stride.update_norms, "weight_norms": stride.weight_norms}
                yield "norms", {key: self.engine.in_order(by_name) for key, by_name in norms.items()}
        if self._interpolates(step) and self.batches:
            yield "between", {"losses": self._losses(drawn)}
            self.batches = []
        # The update of the next step needs these weights, and the angle of the one after that.
        if self._measures(step + 1) or self._interpolates(step + 1) or self._measures(step + 2):
            self.walk.keep()
        else:
            self.walk.forget()

    @torch.no_grad()
    def _losses(self, drawn: int) -> list[float]:
        """As training sees it: the same dropout at each point, and BatchNorm by the batch, whose statistics do not move."""
        assert self.walk is not None
        points = self.wanted.interpolate.points
        sums = torch.zeros(points, dtype=torch.float64, device=self.world.device)
        devices = [self.world.device] if self.world.device.type == "cuda" else []
        with torch.random.fork_rng(devices), buffers.kept(self.engine.task), self.walk.between() as go:
            for point in range(points):
                go(point / (points - 1))
                torch.manual_seed(drawn)
                for batch in self.batches:
                    losses, _ = self.engine.deepspeed(**batch)
                    sums[point] += losses.mean().double() / len(self.batches)
        dist.all_reduce(sums)
        return [float(x) for x in (sums / self.world.size).tolist()]
