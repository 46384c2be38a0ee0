"""``bellwether sweep``: check SWEEP.yaml and the configs it gives, then run it here or on SLURM."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from bellwether.experiments.sweep import search, spec
from bellwether.experiments.sweep.spec import Sweep
from bellwether.experiments.sweep.trial_ids import trial_ids
from bellwether.launcher import console
from bellwether.launcher.launch import LaunchRequest
from bellwether.trainer.config import ConfigError, ConfigErrors, phases
from bellwether.trainer.config.key_paths import COMMAND_LINE
from bellwether.trainer.config.schema import PATTERNS
from bellwether.trainer.phases import check_world_size, splits

_log = logging.getLogger(__name__)


def sweep(path: str, request: LaunchRequest, jobs: int | None, retry: bool) -> int:
    """Start or resume a sweep. Returns the exit status for the shell.

    Args:
        path: of SWEEP.yaml.
        jobs: maximum number of concurrent trials; None: as many as fit, or on SLURM no limit.
        retry: whether failed trials are run again.

    Raises:
        ConfigError, ConfigErrors: if the file, or the config of one of its trials, is wrong.
    """
    console.setup()
    sweep_ = spec.read(path)
    check(sweep_, path, sweep_.processes if request.on == "local" else None)
    check_target(sweep_, path, prepare=request.on == "local" and not request.dry_run)
    for note in [] if request.dry_run else notes(sweep_):
        _log.warning("%s", note)
    if request.on == "slurm":
        from bellwether.experiments.sweep import array

        return array.submit(sweep_, request, jobs, retry)
    if (name := _slurm_option(request)) is not None:
        option = f"--{name.replace('_', '-')}"
        raise ConfigError(
            option, getattr(request, name), "has no effect on this machine", "remove it, or use --on slurm"
        )
    if request.dry_run:
        print(outline(sweep_))
        return 0
    from bellwether.experiments.sweep import local

    return local.run(sweep_, jobs, retry)


def check(sweep: Sweep, path: str, processes: int | None) -> None:
    """Check before the first trial starts that the settings of each optimizer give valid configs at each batch size.

    Args:
        processes: that share each global batch; None: `array.trial_job` checks the split.

    Raises:
        ConfigError, ConfigErrors: naming the keys that are wrong.
    """
    with _errors_in(f"{path}: set"):
        plain = spec.config(sweep, sweep.set)
        if plain.schedule.recipe is None and any("global" in phase.get("batch", {}) for phase in plain.phases):
            advice = "sweep one phase at a time: under set, write phases: [] and the keys of that phase"
            raise ConfigError("config", sweep.config, "has phases with batch sizes of their own", advice, path)
        base = spec.base(sweep)
    if base.stop_after is not None:
        advice = "remove it: duration is the budget of a trial"
        raise ConfigError("stop_after", str(base.stop_after), "has no effect in a sweep", advice, sweep.config)
    if processes is not None:
        check_world_size(base, processes, f"write processes: {base.engine.world_size}")
    for optimizer, variant in sweep.optimizers.items():
        for batch in sweep.batches:
            with _errors_in(f"{path}: optimizers.{optimizer} at batch {batch}"):
                first = {
                    **sweep.set,
                    **variant.set,
                    "batch.global": batch,
                    **search.setting(sweep, optimizer, batch, 0),
                }
                config = spec.config(sweep, first, checked=batch == sweep.batches[0])
                if processes is not None:
                    splits(phases(config), processes)
                for key, values in sweep.space_of(optimizer).items():
                    for value in values if isinstance(values, list) else values.bounds(batch / sweep.batches[0]):
                        checked = batch == sweep.batches[0] and _may_change_names(key)
                        spec.config(sweep, {**first, key: value}, checked=checked)


def _may_change_names(key: str) -> bool:
    """Whether a key holds patterns of parameter names, or decides which names there are."""
    return key.startswith("model.") or any(part in PATTERNS for part in key.split("."))


def check_target(sweep: Sweep, path: str, *, prepare: bool) -> None:
    """Refuse a loss or a perplexity that token frequencies alone reach: a sweep to it measures no learning of language.

    Args:
        prepare: prepare the data for it, as the first trial would; else data that are not prepared are not checked.

    Raises:
        ConfigError: naming the unigram loss.
    """
    goal = sweep.target
    if goal is None or goal.at_least or goal.metric not in ("loss", "perplexity"):
        return
    # Imported here because they import torch.
    from bellwether.trainer import data, scores
    from bellwether.trainer.data.unigram import unigram_loss

    for config in phases(spec.base(sweep)):
        dataset = data.load(config.data) if prepare else data.peek(config.data)
        frequencies = None if dataset is None else unigram_loss(dataset)
        reached = frequencies
        if frequencies is not None and goal.metric == "perplexity":
            reached = scores.perplexity(frequencies)
        if reached is not None and goal.value >= reached:
            problem = (
                f"token frequencies alone have a held-out {goal.metric} of {reached:.2f} (unigram {goal.metric}): a model reaches the "
                "target by learning its output bias"
            )
            raise ConfigError("target", str(goal), problem, f"write a {goal.metric} clearly below {reached:.2f}", path)


@contextmanager
def _errors_in(section: str) -> Iterator[None]:
    """Name a section of SWEEP.yaml in errors about overrides, which otherwise seem to come from a command line."""
    try:
        yield
    except ConfigErrors as error:
        raise ConfigErrors(
            [
                ConfigError(e.key, e.value, e.problem, e.allowed, section if e.source == COMMAND_LINE else e.source)
                for e in error.errors
            ]
        ) from None


def outline(sweep: Sweep) -> str:
    """A summary of a sweep in a few lines, for ``--dry-run``."""
    total = sum(1 for _ in trial_ids(sweep))
    base = spec.base(sweep)
    lines = [f"sweep {sweep.name}: {total} trials of at most {base.duration}, in {sweep.directory}"]
    lines.append(f"  batches     {', '.join(f'{batch:,}' for batch in sweep.batches)}")
    for optimizer in sweep.optimizers:
        space = [f"{key} {_describe(values)}" for key, values in sweep.space_of(optimizer).items()]
        lines.append(
            f"  {optimizer:<11} {sweep.settings(optimizer)} settings per batch size: {'; '.join(space) or 'from the config'}"
        )
    repeated = "every setting" if sweep.repeat == "all" else "the best setting at each batch size"
    lines.append(f"  seeds       {sweep.seeds}" + (f", of {repeated}" if sweep.seeds > 1 else ""))
    if sweep.target is not None:
        lines.append(f"  target      {sweep.target}")
    lines += [f"  note        {note}" for note in notes(sweep)]
    return "\n".join(lines)


def notes(sweep: Sweep) -> list[str]:
    """Warnings about a sweep before it starts."""
    base = spec.base(sweep)
    every, duration = base.evaluate.every, base.duration
    only_at_end = every is None or (every.unit == duration.unit and every.amount >= duration.amount)
    if sweep.target is None or not only_at_end:
        return []
    return ["trials are evaluated only at their end, so none stops at the target: set evaluate.every"]


def _describe(values: spec.Range | list[spec.Value]) -> str:
    if isinstance(values, list):
        return f"one of {values}"
    scale = "logarithmic" if values.log else "linear"
    scaled = {None: "", "linear": ", scaled with the batch size", "sqrt": ", scaled with the root of the batch size"}
    return f"{values.low:g} to {values.high:g} ({scale}{scaled[values.batch]})"


def _slurm_option(request: LaunchRequest) -> str | None:
    """The first option on the command line that only SLURM uses."""
    default = replace(LaunchRequest("", (), "local"), config=request.config, dry_run=request.dry_run)
    return next((k for k, v in vars(request).items() if v != getattr(default, k) and v not in ([], ())), None)
