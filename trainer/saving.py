"""Checkpoints of a run in training: begun at a step boundary, and recorded when all ranks know that they are published."""

from __future__ import annotations

import logging
import time

from bellwether.trainer import arrival
from bellwether.trainer.engine import Engine
from bellwether.trainer.replicas import ReplicaCheck
from bellwether.trainer.run_state import Run

log = logging.getLogger(__name__)

_LONG_WAIT = 1.0  # seconds


def start(run: Run, engine: Engine, replicas: ReplicaCheck, noise: dict[str, float] | None) -> None:
    """Compare the ranks' weights, and begin a checkpoint of the run's position. Collective.

    One that is still being written is waited for, so that the same steps are saved however slow the file system is.
    """
    step = run.position.step
    _wait_for_the_one_before(run)
    run.heartbeat.at(step, arrival.CHECKPOINT)
    began = time.monotonic()
    replicas.check(step)
    fingerprints = [dataset.fingerprint for dataset in run.datasets]
    run.saver.start(engine, run.position, fingerprints, noise, None if run.best is None else run.best.step, began)
    if not run.config.checkpoint.async_save:
        finish(run)


def finish(run: Run) -> float:
    """Wait for the checkpoint that is being written, if there is one, and record it; returns how long that took. Collective.

    Raises:
        OSError: on all ranks, if it could not be written.
    """
    if not run.saver.is_pending:
        return 0.0
    run.heartbeat.at(run.position.step, arrival.CHECKPOINT)
    saved = run.saver.wait()
    run.newest_checkpoint = saved.path
    run.heartbeat.saved(saved.seconds)
    run.heartbeat.at(run.position.step, arrival.WRITING)
    run.metrics.write(
        "checkpoint", step=saved.position.step, samples=saved.position.samples, path=saved.path.relative_to(run.directory),
        seconds=saved.seconds, blocked_seconds=saved.blocked_seconds, waited_seconds=saved.waited_seconds,
    )  # fmt: skip
    return saved.waited_seconds


def _wait_for_the_one_before(run: Run) -> None:
    waited = finish(run)
    if waited > _LONG_WAIT:
        run.late_saves += 1
        log.warning(
            "step %s: the checkpoint waited %.1f s for the one before, which was still being written (%d so far): save less "
            "often (checkpoint.every), or to a faster file system", f"{run.position.step:,}", waited, run.late_saves,
        )  # fmt: skip
