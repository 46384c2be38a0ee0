"""The points of a run at which it can branch, and the configs of the branches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bellwether.optimizers.scaling import scaled_lr
from bellwether.trainer import run_paths
from bellwether.trainer.checkpoint import Manifest
from bellwether.trainer.config import Config, ConfigError, Duration, Span, dump, load, phases
from bellwether.trainer.metrics import History, read
from bellwether.trainer.phases import Phase, plan

Rule = Literal["none", "linear", "sqrt"]

# How a batch changes the rate that suits: in proportion for momentum (Goyal et al. 2017), by the root for Adam (2505.23971; You et al. 2019).
_LINEAR = ("sgd", "lars")


@dataclass(frozen=True)
class Base:
    """A run that is branched. Nothing writes to it."""

    run: Path
    config: Config
    planned: list[Phase]
    history: History

    @classmethod
    def read(cls, run: Path) -> Base:
        """Read a run directory.

        Raises:
            ConfigError: if it is none, or has not trained yet.
        """
        if not (run / "config.yaml").is_file():
            raise ConfigError("RUN", str(run), "is no run directory", "give a directory under runs/")
        config, history = load(run / "config.yaml", quiet=True), read(run)
        if not history.train:
            raise ConfigError("RUN", str(run), "has no logged step yet", "train it first")
        configs = phases(config)
        if any(each.data.carries_state for each in configs):
            problem = "its batch is the number of streams of its text, which a branch at another batch would have to begin anew"
            raise ConfigError(
                "RUN", str(run), problem, "compare batches by a sweep, as in SWEEP.yaml: batches: [64, 128]"
            )
        return cls(run, config, plan(configs, 1, _epochs(history, len(configs))), history)

    @property
    def rule(self) -> Rule:
        """The rule by which the rate follows the batch: the config's, or that of its optimizer."""
        if self.config.scaling.rule != "none":
            return self.config.scaling.rule
        return "linear" if self.config.optimizer.name in _LINEAR else "sqrt"

    def noise_scale(self, step: int) -> float | None:
        """The gradient noise scale that was logged last up to a step."""
        found = [line.get("noise_scale") for line in self.history.train if line["step"] <= step]
        return next((value for value in reversed(found) if value is not None), None)


def _epochs(history: History, count: int) -> list[int]:
    """The training samples of each phase; 1 of phases that have not begun, of which no point is."""
    sizes, before = [1] * count, 0
    for index in range(count):
        lines = [
            line
            for line in history.train
            if line.get("phase") == index and line["samples"] > before and line.get("epoch")
        ]
        if lines:
            sizes[index] = max(1, round((lines[-1]["samples"] - before) / lines[-1]["epoch"]))
            before = lines[-1]["samples"]
    return sizes


@dataclass(frozen=True)
class Point:
    """A position of a run from which it can branch."""

    phase: Phase
    step: int
    samples: int
    batch: int  # of the base run's next step
    window: int  # samples of a branch, a multiple of each of its batches
    checkpoint: Path | None  # None: the beginning

    @property
    def largest(self) -> int:
        """The largest factor of which a branch takes two steps, a power of two."""
        return int(2 ** math.floor(math.log2(self.window / (2 * self.batch))))

    def branch(self, base: Base, factor: int, seed: int, rule: Rule, runs: Path) -> dict[str, Any]:
        """The config of a branch: the same samples at ``factor`` times the batch, its rate scaled by the rule.

        It is the base's config with a batch that grows for the samples of the branch, so that position, sample order and the curve of
        the rate are those of the base.

        Args:
            seed: number of the seed; 0 is the base's own.
        """
        raw = dump(base.config)
        start = self.samples - self.phase.first_sample
        end = start + self.window
        before = [pair for pair in _pairs(self.phase) if pair[0] < start]
        after = [
            pair for pair in _pairs(self.phase) if pair[0] > end
        ]  # not trained: the curve of the rate ends where it did
        own_later = self.phase.batches.batch(self.phase.batches.step(end))
        sizes = [*before, (start, factor * self.batch), (end, own_later), *after]
        rate = scaled_lr(
            self.phase.lr, self.batch, self.phase.batches.batch(0), self.phase.config.scaling.rule
        )  # of the base, at its batch here
        optimizer: dict[str, Any] = {"lr": rate}
        if self.phase.config.optimizer.adam_lr is not None:
            optimizer["adam_lr"] = self.phase.config.optimizer.adam_lr * rate / self.phase.config.optimizer.lr
        own: dict[str, Any] = {
            "duration": f"{self.phase.samples} samples",
            "batch": {"global": [list(pair) for pair in sizes]},
            "optimizer": optimizer,
            "scaling": {"rule": rule, "base_batch": self.batch, "warmup": False},
            "schedule": _in_samples(self.phase),
        }
        for section, values in own.items():
            target = raw["phases"][self.phase.index] if raw["phases"] else raw
            target[section] = values if isinstance(values, str) else {**(target.get(section) or {}), **values}
        raw |= {
            "name": f"step-{self.step:08d}-x{factor}-seed-{seed}", "runs": str(runs), "seed": base.config.seed + 1000 * seed,
            "resume": "auto" if self.checkpoint is None else str(self.checkpoint.resolve()),
            "stop_after": f"{self.samples + self.window} samples", "trajectory": {},
            "divergence": base.config.divergence or 20.0, "checkpoint": {"every": None, "keep": 1, "export": False},
        }  # fmt: skip
        raw["evaluate"] |= {"every": None, "target": None, "best": None, "patience": None, "augment": 0}
        raw["log"] |= {"trackers": [], "report": False, "noise_scale": False, "mlperf": {}}
        return raw


def _pairs(phase: Phase) -> Sequence[tuple[int, int]]:
    sizes = phase.config.batch.sizes
    return [(0, sizes)] if isinstance(sizes, int) else sizes


def _in_samples(phase: Phase) -> dict[str, Any]:
    """The spans of a phase's schedule in samples: those in steps would change with the batch."""
    schedule = phase.config.schedule
    found: dict[str, Any] = {"recipe": None, "warmup": f"{phase.warmup} samples"}
    if schedule.kind == "trapezoid":
        found["cooldown"] = f"{phase.cooldown} samples"
    if phase.milestones:
        found["milestones"] = [f"{at} samples" for at in phase.milestones]
    if phase.interval:
        found["interval"] = f"{phase.interval} samples"
    return found if schedule.kind != "exponential" else {"recipe": None, "warmup": str(Span(share=0.0))}


def points(
    base: Base, window: Duration | None, steps: Sequence[int] | None, count: int
) -> tuple[list[Point], list[str]]:
    """The points to branch at, and what was left out.

    Args:
        window: length of a branch; None: a tenth of the run. It is shortened to a multiple of all batches of which it takes two steps.
        steps: of the points; None: ``count`` of the checkpoints and the beginning, evenly spread.

    Raises:
        ConfigError: if a step has no checkpoint, or nothing is left.
    """
    total = base.planned[-1].first_sample + base.planned[-1].samples
    size = base.planned[0]
    samples = total // 10 if window is None else window.samples(size.batches.batch(0), size.epoch)
    written = str(window or f"{samples} samples")
    checkpoints = {Manifest.read(path).position.step: path for path in run_paths.checkpoints(base.run / "checkpoints")}
    found, notes = [], []
    for step in [0, *checkpoints] if steps is None else steps:
        if step and step not in checkpoints:
            kept = ", ".join(map(str, checkpoints)) or "none"
            raise ConfigError(
                "--at", step, "has no checkpoint", f"those kept are {kept}; checkpoint.keep of the run keeps more"
            )
        phase = next((p for p in base.planned if p.first_step <= step < p.last_step), None)
        batch = base.planned[-1].batches.batch(0) if phase is None else phase.split_at(step + 1).global_batch
        if samples < 4 * batch:
            raise ConfigError(
                "--window", written, f"is less than two steps at twice the batch of {batch:,}", "write more"
            )
        unit = batch * 2 ** (int(math.log2(samples // batch)) - 1)
        own = samples // unit * unit
        start = 0 if phase is None else phase.samples_at(step)
        if phase is None or start + own > phase.first_sample + phase.samples:
            notes.append(f"step {step:,} is left out: less than {own:,} samples of its phase follow")
            continue
        found.append(Point(phase, step, start, batch, own, checkpoints.get(step)))
    if steps is None and len(found) > count:
        found = [found[round(i * (len(found) - 1) / (count - 1))] for i in range(count)] if count > 1 else found[-1:]
    if not found:
        raise ConfigError(
            "--window", written, "no checkpoint has so many samples of its phase after it", "write less, or --at 0"
        )
    return found, notes
