"""Checks before a run starts or resumes: one model over all phases, and the samples and steps that the run began with."""

from __future__ import annotations

import itertools

from bellwether.trainer.checkpoint import Manifest, Position
from bellwether.trainer.config import Config, ConfigError, phases
from bellwether.trainer.data import Dataset
from bellwether.trainer.phases import Phase


def check_position(planned: list[Phase], position: Position, config: Config, is_own: bool) -> None:
    """Refuse a checkpoint between two steps of this run, or after its last step.

    Args:
        is_own: whether the checkpoint is this run's, which may be at the last step: an evaluation may be pending.

    Raises:
        ConfigError: naming the checkpoint's position and this run's.
    """
    last = planned[-1]
    if position.step > last.last_step or (position.step == last.last_step and not is_own):
        problem = f"the checkpoint is at step {position.step:,}, this run ends at step {last.last_step:,}"
        raise ConfigError("resume", config.resume, problem, "lengthen duration, or resume from an earlier checkpoint")
    phase = next((p for p in planned if p.first_step <= position.step < p.last_step), last)
    samples = phase.samples_at(position.step)
    if position.samples != samples:
        problem = (
            f"the checkpoint is at step {position.step:,} after {position.samples:,} samples, "
            f"where this run has had {samples:,}"
        )
        raise ConfigError("resume", config.resume, problem, "resume with the batch size that it was made with")


def check_phases(datasets: list[Dataset]) -> None:
    """Refuse phases with different vocabularies or classes: one model is trained over all of them.

    Raises:
        ConfigError: naming the first phase that differs from the one before it.
    """
    for index, (first, other) in enumerate(itertools.pairwise(datasets), 1):
        same = first.labels == other.labels
        if first.tokenizer is not None and other.tokenizer is not None:
            same = first.tokenizer.get_vocab() == other.tokenizer.get_vocab()
        if not same:
            problem = "its vocabulary or classes differ from those of the previous phase"
            raise ConfigError(f"phases[{index}].data", "", problem, "set one data.tokenizer for all, outside phases")


def check_unchanged(config: Config, manifest: Manifest, datasets: list[Dataset]) -> None:
    """Refuse to resume a run with other samples than it began with.

    Raises:
        ConfigError: if the data, or how it is prepared, has changed since the checkpoint.
    """
    for index, (then, now) in enumerate(zip(manifest.data, (d.fingerprint for d in datasets), strict=True)):
        if then != now:
            key = f"phases[{index}].data.source" if len(datasets) > 1 else "data.source"
            problem = f"the data has changed since the checkpoint was made ({then} then, {now} now)"
            source = phases(config)[index].data.source
            raise ConfigError(key, source, problem, "restore it, or choose another name=...")
