"""The run itself: phase after phase, step after step."""

from __future__ import annotations

import functools
import gc
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainer import checkpoint, data, distributed, jit, models, report, rundir
from trainer.checkpoint import Place
from trainer.config import Config, ConfigError, Duration, phases
from trainer.data.loader import evaluation_batches, train_batches
from trainer.data.order import key
from trainer.distributed import World, agree
from trainer.engine import Engine, build
from trainer.evaluate import evaluate
from trainer.export import export
from trainer.meter import Meter
from trainer.metrics import Metrics
from trainer.plan import Phase, plan, rows, wasteful
from trainer.progress import Progress


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
    began: float = field(default_factory=time.time)

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    def note(self, text: str) -> None:
        if self.progress is not None:
            self.progress.note(text)


def run(config: Config) -> None:
    """Train as the config says, from where the run directory stands: the body of every process of a run."""
    world = distributed.start(config.engine.device)
    try:
        distributed.check_world_size(world.size, config.engine.world_size)
        train(config, world)
    finally:
        dist.destroy_process_group()


def train(config: Config, world: World) -> None:
    """All of a run but its processes. Collective."""
    for line in agree(world, jit.mend_stale_locks):
        _say(world, line)
    directory = agree(world, lambda: rundir.prepare(config))
    source = agree(world, lambda: rundir.start_from(config, directory))
    configs = phases(config)
    datas = [data.load(c.data, config.seed) for c in configs]
    plans = plan(configs, world.size, [len(d.train) for d in datas])
    place = checkpoint.read_place(source) if source else Place(0, 0, 0)
    run = Run(
        config, directory, world, plans, datas,
        metrics=Metrics(directory if world.main else None, tensorboard=config.log.tensorboard),
        progress=Progress() if world.main else None,
        stop=_stop(config, plans),
    )  # fmt: skip
    _announce(run, place, source)
    try:
        while place.step < run.stop:
            phase = _phase_at(plans, place, config)
            place, source = _run_phase(run, phase, place, source)
        finished = place.step == plans[-1].last_step
        seconds = time.time() - run.began
        run.metrics.write(
            "end",
            time=time.time(),
            step=place.step,
            samples=place.samples,
            seconds=seconds,
            reason="finished" if finished else "stopped",
        )
    finally:
        run.metrics.close()
        if run.progress is not None:
            run.progress.close()
    if source is not None:
        agree(world, lambda: _finish(run, source, place))


def _run_phase(run: Run, phase: Phase, place: Place, source: Path | None) -> tuple[Place, Path]:
    """Train one phase to its end or to where the run stops; returns where it stands, with its checkpoint."""
    config, world, device = phase.config, run.world, run.world.device
    samples = run.datas[phase.index]
    torch.manual_seed(run.config.seed)
    task = models.build(config.model, samples, activation_checkpointing=config.engine.activation_checkpointing)
    engine = build(task, phase, world)
    if source is not None:
        checkpoint.load(source, engine, world)
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
    meter = Meter(engine, phase, world)
    if run.progress is not None:
        run.progress.start(place.step, run.plans[-1].last_step)
    saved: Path | None = None
    for step in range(place.step + 1, end + 1):
        torch.manual_seed(key(seed, step * world.size + world.rank))
        meter.step(_micro_batches(batches, phase, device))
        before, place = place, Place(step, place.samples + batch, phase.index)
        due = functools.partial(_due, before, place, phase, end)
        values = None
        # The first step of a phase too: it shows where the loss begins.
        if due(config.log.every) or step == phase.first_step + 1:
            values, layers = meter.read(place)
            run.metrics.write("train", **values)
            if layers:
                run.metrics.write("layers", step=place.step, samples=place.samples, trust_ratio=layers)
        if run.progress is not None:
            run.progress.update(step, values)
        with meter.paused():
            if due(config.evaluate.every):
                _evaluate(run, phase, engine, place)
            if due(config.checkpoint.every):
                saved = _save(run, engine, place)
    engine.destroy()
    del engine, task, meter
    gc.collect()
    assert saved is not None
    return place, saved


def _due(before: Place, now: Place, phase: Phase, end: int, every: Duration | None) -> bool:
    """Whether a multiple of ``every`` lies between two places of a phase; always at the last step."""
    if now.step == end:
        return True
    if every is None:
        return False
    period = max(1, every.samples(phase.split.global_batch, phase.epoch))
    return (now.samples - phase.first_sample) // period > (before.samples - phase.first_sample) // period


def _micro_batches(batches: Iterator[dict[str, Any]], phase: Phase, device: torch.device) -> Iterator[dict[str, Any]]:
    for _ in range(phase.split.accumulation):
        yield {k: v.to(device, non_blocking=True) for k, v in next(batches).items()}


def _evaluate(run: Run, phase: Phase, engine: Engine, place: Place) -> None:
    batches = evaluation_batches(
        run.datas[phase.index].validation, limit=phase.config.evaluate.limit, micro=phase.split.micro,
        rank=run.world.rank, world_size=run.world.size, workers=phase.config.data.workers,
    )  # fmt: skip
    found = evaluate(engine, batches, run.world.device)
    run.metrics.write("eval", time=time.time(), step=place.step, samples=place.samples, phase=phase.index, **found)
    run.note(
        f"step {place.step}: held-out loss {found['loss']:.4f}, accuracy {found['accuracy']:.2%} ({found['examples']:,} samples)"
    )


def _save(run: Run, engine: Engine, place: Place) -> Path:
    began = time.monotonic()
    path = checkpoint.save(run.checkpoints, engine, place, run.world, run.config.checkpoint.keep)
    seconds = time.monotonic() - began
    inside = path.relative_to(run.directory)
    run.metrics.write("checkpoint", step=place.step, samples=place.samples, path=inside, seconds=seconds)
    return path


def _stop(config: Config, plans: list[Phase]) -> int:
    """The step at which this start of the run stops."""
    last = plans[-1].last_step
    if config.stop_after is None:
        return last
    samples = config.stop_after.samples(plans[0].split.global_batch, plans[0].epoch)
    for phase in plans:
        if samples <= phase.first_sample + phase.samples:
            return phase.first_step + math.ceil((samples - phase.first_sample) / phase.split.global_batch)
    return last


def _phase_at(plans: list[Phase], place: Place, config: Config) -> Phase:
    """The phase that the next step belongs to.

    Raises:
        ConfigError: if a checkpoint of another run, with another batch, stands between two steps of this one.
    """
    phase = next(p for p in plans if p.first_step <= place.step < p.last_step)
    if place.samples - phase.first_sample != (place.step - phase.first_step) * phase.split.global_batch:
        raise ConfigError(
            "resume", config.resume,
            f"the checkpoint stands at step {place.step} after {place.samples:,} samples, where this config has seen "
            f"{phase.first_sample + (place.step - phase.first_step) * phase.split.global_batch:,}",
            "resume with the batch that it was made with",
        )  # fmt: skip
    return phase


def _announce(run: Run, place: Place, source: Path | None) -> None:
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
        _say(
            run.world,
            f"plan of {run.config.name}"
            + (f", phase {phase.index + 1} of {len(run.plans)}" if len(run.plans) > 1 else ""),
        )
        for label, value in table:
            _say(run.world, f"  {label:<13} {value}")
        advice = wasteful(phase.split, phase.config.batch.micro)
        if advice:
            _say(run.world, f"  note          {advice}")
    if source is not None:
        _say(run.world, f"going on at step {place.step} from {source}")
    run.metrics.write(
        "start", time=time.time(), version=rundir.code_version(), world_size=run.world.size, device=str(run.world.device),
        step=place.step, samples=place.samples, resumed_from=None if source is None else str(source),
    )  # fmt: skip
    run.metrics.write("plan", phases=[[{"label": label, "value": value} for label, value in table] for table in tables])


def _finish(run: Run, source: Path, place: Place) -> None:
    if place.step == run.plans[-1].last_step:
        phase = run.plans[-1]
        export(source, run.directory, phase.config, run.datas[-1])
    report.write(run.directory)
    print(report.summary(run.directory), flush=True)


def _say(world: World, text: str) -> None:
    if world.main:
        print(text, file=sys.stderr, flush=True)
