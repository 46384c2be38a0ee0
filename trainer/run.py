"""A run from its start to its end, in each of its processes: start-up, phase after phase, export and report."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from bellwether.trainer import (
    accelerated,
    acceleration,
    build_locks,
    checkpoint,
    deepspeed_keys,
    distributed,
    output_log,
    report,
    rundir,
    signals,
    trackers,
)
from bellwether.trainer.announce import announce
from bellwether.trainer.arrival import END, Limits
from bellwether.trainer.config import Config
from bellwether.trainer.distributed import World, run_on_all_ranks, run_on_rank0
from bellwether.trainer.engine import check_precision
from bellwether.trainer.export import export
from bellwether.trainer.heartbeat import Heartbeat
from bellwether.trainer.loop import train_phase
from bellwether.trainer.preemption import StopConsensus
from bellwether.trainer.run_state import Run
from bellwether.trainer.startup import prepare

log = logging.getLogger(__name__)


def run(config: Config) -> int:
    """Start the process group and train as the config says, from the position at which the run directory is.

    Returns:
        the number of the signal that stopped the run, after a checkpoint was saved, or 0.
    """
    world = distributed.start(config.engine.device, timedelta(seconds=config.engine.collective_timeout))
    distributed.check_world_size(world, config.engine.world_size)
    run_on_all_ranks(world, lambda: accelerated.check(config, world))
    return train(config, world, _end_process_group)


def _end_process_group() -> None:
    """End the process group of a run that has not failed; then the ranks need not wait for one another.

    After a failure the other ranks may be in a collective that this one would wait for. All together, because gloo sometimes aborts a
    process whose peers have exited while it cleans up.
    """
    dist.barrier()
    dist.destroy_process_group()


def train(config: Config, world: World, end_process_group: Callable[[], None] = lambda: None) -> int:
    """Train in a process group that is up; returns as `run` does. Collective.

    Args:
        end_process_group: called when training has ended. After that rank 0 alone exports the model and writes the report.
    """
    for line in run_on_all_ranks(world, lambda: build_locks.remove_stale() if world.local_rank == 0 else [])[0]:
        log.warning(line)
    check_precision(config, world)
    acceleration.configure(config.engine, world.device)
    run_on_rank0(world, lambda: deepspeed_keys.check(config))
    run_on_rank0(world, lambda: trackers.check_installed(config.log.trackers))
    timeout = timedelta(seconds=config.engine.collective_timeout)
    with contextlib.ExitStack() as stack:
        directory = run_on_rank0(world, lambda: _lock_directory(config, stack))
        if world.is_main:
            stack.enter_context(output_log.keep(directory))
        heartbeat = stack.enter_context(_heartbeat(config, world, directory))
        with StopConsensus(world, timeout) as stop_consensus:
            run = prepare(config, world, directory, heartbeat, stop_consensus)
            run_on_rank0(world, lambda: announce(run))
            signal = _train_phases(run)
        return _end(run, signal, end_process_group)


def _heartbeat(config: Config, world: World, directory: Path) -> Heartbeat:
    e = config.engine
    limits = Limits(e.hang_factor, e.hang_timeout, e.hang_timeout_data, e.hang_timeout_files)
    return Heartbeat(directory, world, e.heartbeat, limits, config.log.keep)


def _lock_directory(config: Config, stack: contextlib.ExitStack) -> Path:
    """The run directory, locked until the stack is closed."""
    directory, lock = rundir.prepare(config)
    stack.enter_context(lock)
    return directory


def _train_phases(run: Run) -> int:
    """Train until nothing is left to do or a signal stops the run; returns the signal's number, or 0. Collective."""
    signal, started_at = 0, run.position
    try:
        run.stop_consensus.ask()
        with run.saver:
            while run.has_work and not (signal := run.stop_consensus.answer().signal):
                train_phase(run, run.current_phase)
        if run.position != started_at or run.pending_end:
            run.metrics.write(
                "end", step=run.position.step, samples=run.position.samples, seconds=time.time() - run.started,
                reason=_end_reason(run),
            )  # fmt: skip
    finally:
        run.metrics.close()
        if run.progress is not None:
            run.progress.close()
    return signal


def _end(run: Run, signal: int, end_process_group: Callable[[], None]) -> int:
    """The end of the run, for which the other ranks do not wait for rank 0; returns as `run` does. Collective."""
    run.heartbeat.at(run.position.step, END)
    dist.barrier()  # until all are here, one that fails is noticed
    run.heartbeat.stop_watching()
    end_process_group()
    if run.has_work:
        run.heartbeat.close("saved")
        log.info(
            "stopped by %s at step %d; the same command resumes from there", signals.name(signal), run.position.step
        )
        return signal
    if run.world.is_main and (run.newest_checkpoint is not None or run.diverged):
        _finish(run)
    run.heartbeat.close("finished" if run.finished else "diverged" if run.diverged else "stopped")
    return 0


def _end_reason(run: Run) -> str:
    if run.target_reached:
        return "reached"
    if run.diverged:
        return "diverged"
    return "finished" if run.finished and not run.pending_eval else "stopped"


def _finish(run: Run) -> None:
    """Export, report and summary, on rank 0."""
    position, source = run.position, run.best_checkpoint or run.newest_checkpoint
    if run.finished and run.config.checkpoint.export and source is not None:
        if source != run.newest_checkpoint:
            log.info("exporting %s, the best by %s", source.name, run.config.evaluate.best)
        phase = checkpoint.Manifest.read(source).position.phase
        export(source, run.directory, run.phases[phase].config, run.datasets[phase])
    if run.config.log.report:
        report.write(run.directory)
    print(report.summary(run.directory), flush=True)
    if run.finished:
        rundir.mark_finished(run.directory, position, run.config.evaluate.target if run.target_reached else None)
