"""Trains the branches of a run, in a folder of their own, and reads their losses. What is finished is not trained again."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bellwether.experiments.branch.excess import Limit, growth, limit
from bellwether.experiments.branch.points import Base, Point, Rule
from bellwether.trainer import run_paths
from bellwether.trainer.config import ConfigError, to_yaml, validate
from bellwether.trainer.metrics import read

Train = Callable[[Path], int]  # trains the config in a file; returns an exit status


@dataclass(frozen=True)
class Result:
    """The critical batch at one point of a run."""

    point: Point
    limit: Limit
    losses: dict[int, list[float]]  # of each factor, by seed
    noise_scale: float | None

    @property
    def batch(self) -> float:
        return self.limit.factor * self.point.batch

    @property
    def low(self) -> float:
        return self.limit.low * self.point.batch

    @property
    def high(self) -> float | None:
        return None if self.limit.high is None else self.limit.high * self.point.batch


@dataclass(frozen=True)
class Study:
    """The branches of a run.

    Args:
        folder: for their run directories and results.
        window: length of a branch, as the user wrote it or the default.
        factors: multiples of the base batch, powers of two, without 1.
        seeds: number of seeds.
    """

    base: Base
    folder: Path
    points: Sequence[Point]
    window: str
    factors: Sequence[int]
    seeds: int
    rule: Rule
    tolerance: float

    def prepare(self) -> None:
        """Make the folder, or check that it holds branches of the same kind.

        Raises:
            ConfigError: naming the option that has changed.
        """
        file = self.folder / "study.json"
        settings: dict[str, Any] = {"run": str(self.base.run.resolve()), "--window": self.window, "--rule": self.rule}
        stored = run_paths.published_json(file, "--output")
        if stored is not None:
            if "run" not in stored:
                raise ConfigError(
                    "--output", str(self.folder), "holds a study of another kind", "name another directory"
                )
            for key, value in settings.items():
                if stored.get(key) != value:
                    problem = f"the branches in {self.folder} were made with {stored.get(key)}"
                    raise ConfigError(key, value, problem, "write that, or another --output")
        self.folder.mkdir(parents=True, exist_ok=True)
        run_paths.publish(file, json.dumps(settings, indent=1) + "\n")

    def factors_at(self, point: Point) -> list[int]:
        """The factors of which a branch takes at least two steps."""
        return [1, *(factor for factor in self.factors if factor <= point.largest)]

    def branches(self) -> Iterator[tuple[Point, int, int]]:
        for point in self.points:
            for factor in self.factors_at(point):
                yield from ((point, factor, seed) for seed in range(self.seeds))

    def train(self, train: Train, tell: Callable[[str], None]) -> int:
        """Train the branches that are not finished, one after the other. Returns the exit status of the first that was stopped, or 0."""
        branches = list(self.branches())
        for number, (point, factor, seed) in enumerate(branches, 1):
            config = validate(point.branch(self.base, factor, seed, self.rule, self.folder))
            file = self.folder / f"{config.name}.yaml"
            if self.loss(point, factor, seed) is not None:
                self._clear(file)
                continue
            tell(
                f"branch {number} of {len(branches)}: step {point.step:,}, batch {factor * point.batch:,}, seed {seed}"
            )
            run_paths.publish(file, to_yaml(config))
            if status := train(file):
                return status
            self._clear(file)
        return 0

    def _clear(self, file: Path) -> None:
        """Delete what a finished branch does not need any more: the next one starts from the base's checkpoint, and these may be large."""
        file.unlink(missing_ok=True)
        shutil.rmtree(file.with_suffix("") / "checkpoints", ignore_errors=True)

    def loss(self, point: Point, factor: int, seed: int) -> float | None:
        """The held-out loss at the end of a branch, infinite if it diverged; None if it is not finished."""
        history = read(self.folder / f"step-{point.step:08d}-x{factor}-seed-{seed}")
        if history.state == "diverged":
            return math.inf
        ends = [line["loss"] for line in history.eval if line["samples"] >= point.samples + point.window]
        return float(ends[-1]) if ends and math.isfinite(ends[-1]) else math.inf if ends else None

    def results(self) -> list[Result]:
        """The critical batch at each point. All branches must be finished."""
        found = []
        for point in self.points:
            factors = self.factors_at(point)
            losses = {f: [self._finished(point, f, seed) for seed in range(self.seeds)] for f in factors}
            found.append(Result(point, limit(losses, self.tolerance), losses, self.base.noise_scale(point.step)))
        return found

    def _finished(self, point: Point, factor: int, seed: int) -> float:
        loss = self.loss(point, factor, seed)
        assert loss is not None, "train() comes first"
        return loss

    def schedule(self, results: Sequence[Result]) -> list[tuple[int, int]]:
        """The batch warm-up that follows from the curve, for the phase of the first point."""
        phase = self.points[0].phase
        own = [result for result in results if result.point.phase == phase]
        curve = [(result.point.samples - phase.first_sample, result.batch) for result in own]
        return growth(phase.batches.batch(0), curve)
