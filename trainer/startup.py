"""From a config to a `Run` that is ready to train: data, phases, and where to resume."""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from bellwether.trainer import checkpoint, micro_batch, rundir
from bellwether.trainer.announce import nodes
from bellwether.trainer.best import BestEvaluation
from bellwether.trainer.checkpoint import Position, Saver
from bellwether.trainer.config import Config, dump, phases
from bellwether.trainer.control_group import ControlGroup
from bellwether.trainer.data import Dataset, arranged
from bellwether.trainer.distributed import World, run_on_rank0
from bellwether.trainer.divergence import DivergenceDetector
from bellwether.trainer.heartbeat import Heartbeat
from bellwether.trainer.metrics import Metrics, read
from bellwether.trainer.mlperf.result_log import ResultLog
from bellwether.trainer.phases import Phase, plan, stop_step
from bellwether.trainer.preemption import StopConsensus
from bellwether.trainer.progress import Progress
from bellwether.trainer.resume import check_phases, check_position, check_unchanged
from bellwether.trainer.run_state import Run
from bellwether.trainer.shared_data import load_once_a_machine

log = logging.getLogger(__name__)


def prepare(config: Config, world: World, directory: Path, heartbeat: Heartbeat, stop_consensus: StopConsensus) -> Run:
    """Find the checkpoint to resume from, load the data and plan the phases. Collective.

    Raises:
        ConfigError: if the data cannot be read, or the checkpoint does not fit the run.
    """
    own, damaged = checkpoint.newest_intact(directory / "checkpoints", world)
    for line in damaged:
        log.warning(line)
    source = run_on_rank0(world, lambda: rundir.start_from(config, directory, own))
    configs = phases(config)
    datasets = load_once_a_machine(configs, world)
    configs = micro_batch.resolved(configs, datasets, world, directory, nodes(world.size))
    planned = plan(configs, world.size, [_epoch(c, d) for c, d in zip(configs, datasets, strict=True)])
    check_phases(datasets)
    position = Position(0, 0, 0)
    if source is not None:
        manifest = checkpoint.read_manifest(source, world)
        position = manifest.position
        check_position(planned, position, config, is_own=own is not None)
        if own is not None:
            check_unchanged(config, manifest, datasets)
    metrics = _metrics(directory, config, planned[0]) if world.is_main else Metrics(None)
    run = Run(
        config, directory, world, planned, datasets, position,
        newest_checkpoint=source, verified_checkpoint=own, stop_step=stop_step(config, planned),
        heartbeat=heartbeat, stop_consensus=stop_consensus, divergence=DivergenceDetector(config.divergence),
        metrics=metrics, saver=_saver(config, world, directory, metrics, heartbeat),
        progress=Progress() if world.is_main else None,
        target_reached=run_on_rank0(world, lambda: rundir.has_reached(directory, position, config.evaluate.target)),
    )  # fmt: skip
    if config.evaluate.best is not None:
        run.best = BestEvaluation(**run_on_rank0(world, lambda: _best_so_far(run, str(config.evaluate.best))))
    if own is not None:
        run.pending_eval, run.pending_end, detector = run_on_rank0(world, lambda: _from_history(run))
        vars(run.divergence).update(detector)
    heartbeat.total = planned[-1].last_step
    return run


def _epoch(config: Config, dataset: Dataset) -> int:
    """The training samples of an epoch."""
    return len(arranged(dataset.train, config.batch.all_sizes[0]))


def _metrics(directory: Path, config: Config, first: Phase) -> Metrics:
    result_log = None if config.log.mlperf.benchmark is None else ResultLog(directory, first)
    return Metrics(directory, config.log.trackers, name=config.name, config=dump(config), result_log=result_log)


def _saver(config: Config, world: World, directory: Path, metrics: Metrics, heartbeat: Heartbeat) -> Saver:
    timeout = timedelta(seconds=config.engine.collective_timeout)
    group = ControlGroup("save", world, timeout) if config.checkpoint.async_save else None
    return Saver(directory / "checkpoints", world, group, config.checkpoint.keep, metrics.sync, heartbeat.saves)


def _best_so_far(run: Run, score: str) -> dict[str, Any]:
    """The best evaluation up to the run's position. Those whose checkpoint was deleted do not count."""
    before = [line for line in read(run.directory).eval if line["step"] <= run.position.step]
    best = BestEvaluation(score)
    best.replay(line for line in before if checkpoint.path_of(run.checkpoints, line["step"]).is_dir())
    best.since = sum(line["step"] > best.step for line in before)
    return asdict(best)


def _from_history(run: Run) -> tuple[bool, bool, dict[str, float | None]]:
    """The part of a resumed run's state that only its metrics record.

    Returns:
        whether its newest checkpoint was not evaluated although it was due, whether its end was not written, and the
        attributes of the divergence detector as they were at the checkpoint.
    """
    history, position = read(run.directory), run.position
    divergence = DivergenceDetector(run.config.divergence)
    for line in history.train:
        if line["step"] <= position.step:  # the steps after the checkpoint are trained again
            divergence.diverged(line["loss"])
    if history.state == "diverged":
        last = history.train[-1]["step"]
        log.warning(
            "the run diverged at step %s and will diverge there again unless divergence is set higher", f"{last:,}"
        )
    phase = run.phases[position.phase]
    was_due = position.step in (phase.last_step, run.stop_step) or phase.due(position.step, phase.config.evaluate.every)
    was_evaluated = any(line["step"] == position.step for line in history.eval)
    return was_due and not was_evaluated, history.state == "unfinished", vars(divergence)
