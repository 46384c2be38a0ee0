"""The run itself: phase after phase, step after step."""

from __future__ import annotations

import functools
import gc
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist

from bellwether.trainer import accelerated, build_locks, checkpoint, data, distributed, models, report, rundir, signals
from bellwether.trainer.checkpoint import Manifest, Position
from bellwether.trainer.config import Config, ConfigError, dump, phases
from bellwether.trainer.data import images
from bellwether.trainer.data.loader import evaluation_batches, train_batches
from bellwether.trainer.data.sampling import key
from bellwether.trainer.distributed import World, run_on_all_ranks, run_on_rank0
from bellwether.trainer.divergence import DivergenceDetector
from bellwether.trainer.engine import Engine, build, check_precision
from bellwether.trainer.evaluate import evaluate, evaluate_average
from bellwether.trainer.export import export
from bellwether.trainer.heartbeat import Heartbeat
from bellwether.trainer.metrics import KINDS, Metrics, read
from bellwether.trainer.phases import Phase, notes, plan, rows, stop_step
from bellwether.trainer.preemption import StopConsensus
from bellwether.trainer.progress import Progress
from bellwether.trainer.resume import check_phases, check_place, check_unchanged
from bellwether.trainer.step_metrics import StepMetrics
from bellwether.trainer.trajectory import TrajectoryProbe


@dataclass
class Run:
    """What stays the same over all phases."""

    config: Config
    directory: Path
    world: World
    plans: list[Phase]
    datas: list[data.Data]
    metrics: Metrics
    progress: Progress | None
    stop: int  # step at which to stop, the last one or earlier
    heartbeat: Heartbeat
    notice: StopConsensus
    course: DivergenceDetector
    reached: bool = False  # the target, if the config names one
    diverged: bool = False
    owed: bool = False  # the evaluation of the checkpoint that it goes on from, which was cut off
    began: float = field(default_factory=time.time)

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    def finished(self, place: Position) -> bool:
        return self.reached or (place.step == self.plans[-1].last_step and not self.diverged)

    def note(self, text: str) -> None:
        if self.progress is not None:
            self.progress.note(text)


def run(config: Config) -> int:
    """Train as the config says, from where the run directory stands: the body of every process of a run.

    Returns:
        the number of the signal that stopped it, after it was saved, or 0.
    """
    world = distributed.start(config.engine.device, timedelta(seconds=config.engine.collective_timeout))
    distributed.check_world_size(world, config.engine.world_size)
    run_on_all_ranks(world, lambda: accelerated.check(config, world))
    signal = train(config, world)
    # Not when it failed: the other ranks may be in a collective that this one would wait for. Together, because gloo now
    # and then aborts a process whose peers have gone while it cleans up.
    dist.barrier()
    dist.destroy_process_group()
    return signal


def train(config: Config, world: World) -> int:
    """All of a run but its processes; returns as `run` does. Collective."""
    for line in run_on_all_ranks(world, lambda: build_locks.mend_stale_locks() if world.local_rank == 0 else [])[0]:
        _say(world, line)
    check_precision(config, world)
    held: list[IO[str] | None] = []

    def take() -> Path:
        path, lock = rundir.prepare(config)
        held.append(lock)
        return path

    directory = run_on_rank0(world, take)
    limit = timedelta(seconds=config.engine.collective_timeout)
    try:
        with Heartbeat(directory, world, config.engine.heartbeat) as heartbeat, StopConsensus(world, limit) as notice:
            return _train(config, world, directory, heartbeat, notice)
    finally:
        for file in filter(None, held):
            file.close()


def _train(config: Config, world: World, directory: Path, heartbeat: Heartbeat, notice: StopConsensus) -> int:
    own, said = checkpoint.newest_intact(directory / "checkpoints", world)
    for line in said:
        _say(world, line)
    source = run_on_rank0(world, lambda: rundir.start_from(config, directory, own))
    configs = phases(config)
    datas: list[data.Data] = []
    run_on_all_ranks(world, lambda: datas.extend(data.load(c.data) for c in configs))
    plans = plan(configs, world.size, [len(d.train) for d in datas])
    check_phases(datas)
    place = Position(0, 0, 0)
    if source is not None:
        manifest = run_on_rank0(world, functools.partial(Manifest.read, source))
        place = manifest.place
        check_place(plans, place, config, own is not None)
        if own is not None:
            check_unchanged(config, manifest, datas)
    run = Run(
        config, directory, world, plans, datas,
        metrics=Metrics(directory if world.main else None, tensorboard=config.log.tensorboard),
        progress=Progress() if world.main else None,
        stop=stop_step(config, plans), heartbeat=heartbeat, notice=notice, course=DivergenceDetector(config.divergence),
        reached=run_on_rank0(world, lambda: rundir.has_reached(directory, place, config.evaluate.target)),
    )  # fmt: skip
    unended = False
    if own is not None:
        run.owed, unended, run.course = run_on_rank0(world, lambda: _past(run, place))
    heartbeat.total = plans[-1].last_step
    _announce(run, place, source)
    began = place
    try:
        notice.ask()
        while (place.step < run.stop or run.owed) and not run.reached and not (signal := notice.answer()):
            here = next((p for p in plans if p.first_step <= place.step < p.last_step), plans[-1])
            phase = plans[place.phase] if run.owed else here
            place, source = _run_phase(run, phase, place, source)
        if place != began or unended:
            reason = "reached" if run.reached else "diverged" if run.diverged else "stopped"
            if run.finished(place) and reason == "stopped" and not run.owed:
                reason = "finished"
            run.metrics.write(
                "end", step=place.step, samples=place.samples, seconds=time.time() - run.began, reason=reason
            )  # fmt: skip
    finally:
        run.metrics.close()
        if run.progress is not None:
            run.progress.close()
    heartbeat.at(place.step, "end")
    if (place.step < run.stop or run.owed) and not run.reached:
        heartbeat.close("saved")
        _say(world, f"stopped by {signals.name(signal)} at step {place.step}; the same command goes on from there")
        return signal
    if source is not None or run.diverged:
        run_on_rank0(world, lambda: _finish(run, source, place))
    heartbeat.close("finished" if run.finished(place) else "diverged" if run.diverged else "stopped")
    return 0


def _past(run: Run, place: Position) -> tuple[bool, bool, DivergenceDetector]:
    """Of a run that goes on: was it cut off before it had evaluated its newest checkpoint, and before it had said how it
    ended; and its losses so far."""
    history = read(run.directory)
    course = DivergenceDetector(run.config.divergence)
    for line in history.train:
        if line["step"] <= place.step:  # what came after the checkpoint comes again
            course.diverged(line["loss"])
    if history.state == "diverged":
        said = f"the run diverged at step {history.train[-1]['step']:,}, and will again unless divergence is set higher"
        _say(run.world, said)
    phase = run.plans[place.phase]
    due = place.step in (phase.last_step, run.stop) or phase.due(place.step, phase.config.evaluate.every)
    evaluated = any(line["step"] == place.step for line in history.eval)
    return due and not evaluated, history.state == "unfinished", course


def _run_phase(run: Run, phase: Phase, place: Position, source: Path | None) -> tuple[Position, Path | None]:
    """Train one phase to its end or to where the run stops; returns where it stands, and its newest checkpoint."""
    config, world, device = phase.config, run.world, run.world.device
    samples = run.datas[phase.index]
    torch.manual_seed(run.config.seed)
    task = models.build(config.model, samples, activation_checkpointing=config.engine.activation_checkpointing)
    engine = build(task, phase, world)
    diagnosis = TrajectoryProbe(engine, phase, world)  # before the weights are others than those of the run's start
    manifest = None if source is None else checkpoint.load(source, engine, world)
    engine.schedule.seek(place.samples - phase.first_sample)
    end = min(run.stop, phase.last_step)
    batch = phase.split.global_batch
    # Everything random is a function of (seed, phase, position): nothing random has to be saved.
    seed = key(run.config.seed, phase.index)
    batches = train_batches(
        samples.train, seed=seed, start=place.samples - phase.first_sample, steps=end - place.step, global_batch=batch,
        micro=phase.split.micro, accumulation=phase.split.accumulation, rank=world.rank, world_size=world.size,
        workers=config.data.workers, pin_memory=device.type == "cuda",
    )  # fmt: skip
    # Other batches, or other data, have other noise.
    meter = StepMetrics(
        engine, phase, world, manifest.noise if manifest is not None and place.phase == phase.index else {}
    )
    if run.progress is not None:
        run.progress.start(place.step, run.plans[-1].last_step)
    if run.owed:
        run.owed = False
        run.heartbeat.at(place.step, "evaluation")
        _evaluate(run, phase, engine, place)
    for step in range(place.step + 1, end + 1 if not run.reached else 0):
        drawn = key(seed, step * world.size + world.rank)
        torch.manual_seed(drawn)
        micro_batches = diagnosis.watched(step, _micro_batches(run, batches, phase, step))
        meter.step(micro_batches)
        place = Position(step, place.samples + batch, phase.index)
        told = run.notice.answer() != 0
        final = told or step == end
        values = None
        # The first step of a phase too, which shows where the loss begins; and none is saved whose loss was not seen.
        saving = final or phase.due(step, config.checkpoint.every)
        if saving or phase.due(step, config.log.every) or step == phase.first_step + 1:
            values, layers = meter.read(place)
            if run.config.divergence is None:
                _check_loss(run, phase, values)
            elif run.course.diverged(values["loss"]):
                run.stop, run.diverged = step, True
            run.metrics.write("train", **values)
            if run.diverged:  # its weights are worth neither a checkpoint, in place of a good one, nor an evaluation
                run.note(f"step {step}: the loss has diverged, to {values['loss']:.4g}")
                break
            if layers:
                run.metrics.write("layers", step=place.step, samples=place.samples, trust_ratio=layers)
        if run.progress is not None:
            run.progress.update(step, values)
        with meter.paused():
            for event, measured in diagnosis.after(step, drawn):
                run.metrics.write(event, step=step, samples=place.samples, **measured)
            # The checkpoint first: a signal's minutes may be running out.
            if saving:
                run.heartbeat.at(step, "checkpoint")
                source = _save(run, engine, place, meter)
            if step in (end, run.stop) or (phase.due(step, config.evaluate.every) and not told):
                run.heartbeat.at(step, "evaluation")
                _evaluate(run, phase, engine, place)
                if run.reached and not saving:
                    source = _save(run, engine, place, meter)
        if told or run.reached or step == run.stop:
            break
    engine.destroy()
    del engine, task, meter
    gc.collect()
    return place, source


def _check_loss(run: Run, phase: Phase, values: dict[str, Any]) -> None:
    """Every rank has the same mean loss, so all stop together.

    Raises:
        ConfigError: if training has diverged.
    """
    if not math.isnan(values["loss"]):
        return
    run.metrics.write("train", **values)
    saved = run_on_rank0(run.world, lambda: checkpoint.newest(run.checkpoints))
    problem = f"the loss is not a number at step {values['step']:,}"
    advice = "lower it, lengthen schedule.warmup, or clip" + (f"; the newest checkpoint is {saved}" if saved else "")
    raise distributed.for_all(ConfigError("optimizer.lr", phase.config.optimizer.lr, problem, advice))


def _micro_batches(run: Run, batches: Iterator[dict[str, Any]], phase: Phase, step: int) -> Iterator[dict[str, Any]]:
    """Those of one step of this rank."""
    for index in range(phase.split.accumulation):
        run.heartbeat.at(step - 1, "waiting for data")
        batch = {k: v.to(run.world.device, non_blocking=True) for k, v in next(batches).items()}
        run.heartbeat.at(step - 1, "forward, backward and update")
        if index == phase.split.accumulation - 1:
            run.notice.ask()
        yield batch


def _evaluate(run: Run, phase: Phase, engine: Engine, place: Position) -> None:
    samples, wanted, split = run.datas[phase.index], phase.config.evaluate, phase.split
    place_of: dict[str, Any] = {"rank": run.world.rank, "world_size": run.world.size}

    def held_out(held: data.Samples) -> Iterator[dict[str, Any]]:
        workers = phase.config.data.workers
        return evaluation_batches(held, limit=wanted.limit, micro=split.micro, workers=workers, **place_of)

    found = evaluate(engine, held_out(samples.validation), run.world.device)
    if wanted.augment:
        assert isinstance(samples.validation, images.ImageSamples)
        views = images.Views(samples.validation, wanted.augment, run.config.seed)
        augmented = evaluate(engine, held_out(views), run.world.device)
        found |= {f"{name}_augmented": augmented[name] for name in ("loss", "accuracy")}
    training = train_batches(
        samples.train, seed=key(run.config.seed, phase.index), start=0,
        steps=max(1, min(phase.config.averaging.batch_norm, phase.epoch) // split.global_batch),
        global_batch=split.global_batch, micro=split.micro, accumulation=split.accumulation, workers=0, **place_of,
    )  # fmt: skip
    found |= evaluate_average(engine, held_out(samples.validation), training, run.world.device)
    run.metrics.write("eval", time=time.time(), step=place.step, samples=place.samples, phase=phase.index, **found)
    more = "".join(f", {kind} {found[f'accuracy_{kind}']:.2%}" for kind in KINDS if f"accuracy_{kind}" in found)
    run.note(
        f"step {place.step}: held-out loss {found['loss']:.4f}, accuracy {found['accuracy']:.2%}{more} "
        f"({found['examples']:,} samples)"
    )
    target = run.config.evaluate.target
    if target is not None and target.holds(found):  # the same on all ranks
        run.reached = True
        run.note(f"step {place.step}: {target} is reached")


def _save(run: Run, engine: Engine, place: Position, meter: StepMetrics) -> Path:
    began = time.monotonic()
    path = checkpoint.save(
        run.checkpoints, engine, place, run.world, run.config.checkpoint.keep, [d.fingerprint for d in run.datas],
        noise=meter.noise.estimate.state() if meter.noise else None,
    )  # fmt: skip
    seconds = time.monotonic() - began
    inside = path.relative_to(run.directory)
    run.metrics.write("checkpoint", step=place.step, samples=place.samples, path=inside, seconds=seconds)
    return path


def _announce(run: Run, place: Position, source: Path | None) -> None:
    """The plan, on the terminal and in the metrics."""
    if not run.world.main:
        return
    first = run.datas[0]
    tables = []
    for phase in run.plans:
        table = rows(phase)
        if first.vocabulary_size is not None:
            table.append(("vocabulary", f"{first.vocabulary_size:,}"))
        if first.classes is not None:
            table.append(("classes", f"{first.classes:,}"))
        tables.append(table)
        part = f", phase {phase.index + 1} of {len(run.plans)}" if len(run.plans) > 1 else ""
        _say(run.world, f"plan of {run.config.name}{part}")
        for label, value in table:
            _say(run.world, f"  {label:<13} {value}")
        for note in notes(phase):
            _say(run.world, f"  note          {note}")
    if source is not None:
        _say(run.world, f"going on at step {place.step} from {source}")
    if run.reached or (place.step >= run.stop and not run.owed):
        why = f"{run.config.evaluate.target} was reached" if run.reached else f"it was to stop at {run.stop}"
        _say(run.world, f"nothing is left to do: the run stands at step {place.step}, and {why}")
        return  # and the metrics say how it ended
    run.metrics.write(
        "start", time=time.time(), version=rundir.code_version(), world_size=run.world.size,
        device=str(run.world.device), engine=dump(run.config)["engine"], step=place.step, samples=place.samples, resumed_from=None if source is None else str(source),
    )  # fmt: skip
    run.metrics.write("plan", phases=[[{"label": label, "value": value} for label, value in table] for table in tables])


def _finish(run: Run, source: Path | None, place: Position) -> None:
    if run.finished(place) and run.config.checkpoint.export and source is not None:
        export(source, run.directory, run.plans[place.phase].config, run.datas[place.phase])
    if run.config.log.report:
        report.write(run.directory)
    print(report.summary(run.directory), flush=True)
    if run.finished(place):
        rundir.mark_finished(run.directory, place, run.config.evaluate.target if run.reached else None)


def _say(world: World, text: str) -> None:
    if world.main:
        print(text, file=sys.stderr, flush=True)
