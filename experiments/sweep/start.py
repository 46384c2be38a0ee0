"""``bellwether sweep``: look at SWEEP.yaml as a whole, then run it here or on SLURM."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from bellwether.experiments.sweep import search, spec
from bellwether.experiments.sweep.slots import slots
from bellwether.experiments.sweep.spec import Sweep
from bellwether.launcher.launch import Request
from bellwether.trainer.config import ConfigError, ConfigErrors, phases
from bellwether.trainer.config.error_messages import COMMAND_LINE
from bellwether.trainer.phases import splits


def sweep(path: str, request: Request, jobs: int | None, retry: bool) -> int:
    """Returns the exit status for the shell.

    Raises:
        ConfigErrors: if the file, or the config of a run that it asks for, is wrong.
    """
    asked = spec.read(path)
    check(asked, path, asked.processes if request.on == "local" else None)
    for note in [] if request.dry_run else notes(asked):
        print(f"bellwether: {note}", file=sys.stderr)
    if request.on == "slurm":
        from bellwether.experiments.sweep import array

        return array.submit(asked, request, jobs, retry)
    if (name := _said(request)) is not None:
        advice = "take it out, or sweep --on slurm"
        raise ConfigError(f"--{name.replace('_', '-')}", getattr(request, name), "has no meaning here", advice)
    if request.dry_run:
        print(outline(asked))
        return 0
    from bellwether.experiments.sweep import local

    return local.run(asked, jobs, retry)


def check(sweep: Sweep, path: str, processes: int | None) -> None:
    """Whether the settings of each optimizer make configs at each batch, before anything has begun.

    Args:
        processes: that are to share each batch; None: `array.job` looks at that.

    Raises:
        ConfigError, ConfigErrors: naming what is wrong with one.
    """
    with _within(f"{path}: set"):
        plain = spec.config(sweep, sweep.set)
        if plain.schedule.recipe is None and any("global" in phase.get("batch", {}) for phase in plain.phases):
            advice = "sweep one phase at a time: write phases: [] under set, and what that phase has"
            raise ConfigError("config", sweep.config, "has phases with batches of their own", advice, path)
        base = spec.base(sweep)
    if base.stop_after is not None:
        advice = "take it out: duration is the budget of a run"
        raise ConfigError("stop_after", str(base.stop_after), "has no meaning in a sweep", advice, sweep.config)
    for optimizer, variant in sweep.optimizers.items():
        for batch in sweep.batches:
            with _within(f"{path}: optimizers.{optimizer} at batch {batch}"):
                setting = search.setting(sweep, optimizer, batch, 0)
                fixed = {**sweep.set, **variant.set, "batch.global": batch}
                made = spec.config(sweep, {**fixed, **setting})
                if processes is not None:
                    splits(phases(made), processes)
                for key, where in sweep.space_of(optimizer).items():
                    ends = where if isinstance(where, list) else where.at(batch / sweep.batches[0])
                    for value in ends:
                        spec.config(sweep, {**fixed, **setting, key: value})


@contextmanager
def _within(place: str) -> Iterator[None]:
    """Say of what a config does not take where in SWEEP.yaml it stands; to `bellwether.trainer.config` it came from a command line."""
    try:
        yield
    except ConfigErrors as error:
        raise ConfigErrors(
            [
                ConfigError(e.key, e.value, e.problem, e.allowed, place if e.source == COMMAND_LINE else e.source)
                for e in error.errors
            ]
        ) from None


def outline(sweep: Sweep) -> str:
    """What a sweep would run, in a few lines."""
    every = list(slots(sweep))
    base = spec.base(sweep)
    lines = [f"sweep {sweep.name}: {len(every)} runs of {base.duration} at most, in {sweep.directory}"]
    lines.append(f"  batches     {', '.join(f'{batch:,}' for batch in sweep.batches)}")
    for optimizer in sweep.optimizers:
        places = [f"{key} {_place(where)}" for key, where in sweep.space_of(optimizer).items()]
        lines.append(
            f"  {optimizer:<11} {sweep.settings(optimizer)} settings a batch: {'; '.join(places) or 'its own'}"
        )
    repeated = "every setting" if sweep.repeat == "all" else "the best at each batch"
    lines.append(f"  seeds       {sweep.seeds}" + (f", of {repeated}" if sweep.seeds > 1 else ""))
    if sweep.target is not None:
        lines.append(f"  target      {sweep.target}")
    lines += [f"  note        {note}" for note in notes(sweep)]
    return "\n".join(lines)


def notes(sweep: Sweep) -> list[str]:
    """What a person should know of a sweep before it runs."""
    base = spec.base(sweep)
    every, duration = base.evaluate.every, base.duration
    seldom = every is None or (every.unit == duration.unit and every.amount >= duration.amount)
    if sweep.target is None or not seldom:
        return []
    return ["runs are evaluated at their end alone, so none stops at the target: set evaluate.every"]


def _place(where: spec.Range | list[spec.Value]) -> str:
    if isinstance(where, list):
        return f"one of {where}"
    scale = "logarithmic" if where.log else "linear"
    moving = {None: "", "linear": ", moving with the batch", "sqrt": ", moving with the batch's root"}[where.batch]
    return f"{where.low:g} to {where.high:g} ({scale}{moving})"


def _said(request: Request) -> str | None:
    """An option of SLURM's that stands on the command line."""
    nothing = replace(Request("", (), "local"), config=request.config, dry_run=request.dry_run)
    return next((k for k, v in vars(request).items() if v != getattr(nothing, k) and v not in ([], ())), None)
