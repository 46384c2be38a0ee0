"""Bellwether's trainer as `bellwether train` runs it in each process, with a gate after each step."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from scripts.bench_train.gate import Gate, uncounted
from scripts.bench_train.shared import Setup

# What is given up: the noise scale's estimate, the comparison of replicas between checkpoints, and a log line of each ten steps.
BEST = {"engine.stage": 0, "engine.replica_check": None, "log.noise_scale": False, "log.every": "1000 steps"}


def run(setup: Setup, gate: Gate) -> None:
    from bellwether.trainer import distributed
    from bellwether.trainer.config import validate
    from bellwether.trainer.loop import PhaseLoop
    from bellwether.trainer.run import train
    from bellwether.trainer.step_metrics import StepMetrics

    losses: list[Any] = []
    add, log, start = StepMetrics.add, PhaseLoop.log, PhaseLoop.train
    open_batches = PhaseLoop._open_batches

    def added(self: StepMetrics, result: Any, samples: int) -> None:
        losses[:] = [result.loss]
        add(self, result, samples)

    def logged(self: PhaseLoop, save_due: bool) -> None:
        log(self, save_due)
        gate.after_step(losses[0])

    def started(self: PhaseLoop) -> None:
        gate.save = self.save
        gate.parameters = self.engine.task.parameters
        gate.open()
        start(self)

    def opened(self: PhaseLoop) -> Any:
        return uncounted(open_batches(self))

    StepMetrics.add, PhaseLoop.log, PhaseLoop.train = added, logged, started  # type: ignore[method-assign]
    PhaseLoop._open_batches = opened  # type: ignore[method-assign]
    world = distributed.start("cpu", timedelta(seconds=120))
    train(validate(_raw(setup)), world)


def _raw(setup: Setup) -> dict[str, Any]:
    raw = {"name": "bench", "runs": str(setup.folder / "runs"), **setup.raw}
    for key, value in BEST.items() if setup.best else ():
        section, _, name = key.partition(".")
        raw[section] = {**raw.get(section, {}), name: value}
    return raw
