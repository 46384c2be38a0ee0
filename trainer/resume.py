"""What must hold before a run begins or goes on: one model over all phases, the samples and steps that it began with."""

from __future__ import annotations

import itertools

from bellwether.trainer.checkpoint import Manifest, Position
from bellwether.trainer.config import Config, ConfigError, phases
from bellwether.trainer.data import Data
from bellwether.trainer.phases import Phase


def check_place(plans: list[Phase], place: Position, config: Config, own: bool) -> None:
    """Refuse a checkpoint that lies between two steps of this run, or behind its last.

    Raises:
        ConfigError: naming where it stands and where this run would be.
    """
    last = plans[-1]
    if place.step > last.last_step or (place.step == last.last_step and not own):
        problem = f"the checkpoint stands at step {place.step:,}, this run ends at step {last.last_step:,}"
        raise ConfigError("resume", config.resume, problem, "lengthen duration, or resume from an earlier checkpoint")
    phase = next((p for p in plans if p.first_step <= place.step < p.last_step), last)
    samples = phase.first_sample + (place.step - phase.first_step) * phase.split.global_batch
    if place.samples != samples:
        problem = (
            f"the checkpoint stands at step {place.step:,} after {place.samples:,} samples, this run after {samples:,}"
        )
        raise ConfigError("resume", config.resume, problem, "resume with the batch that it was made with")


def check_phases(datas: list[Data]) -> None:
    """One model has one vocabulary, and one list of classes, over all phases."""
    for index, (first, other) in enumerate(itertools.pairwise(datas), 1):
        same = first.labels == other.labels
        if first.tokenizer is not None and other.tokenizer is not None:
            same = first.tokenizer.get_vocab() == other.tokenizer.get_vocab()
        if not same:
            problem = "its vocabulary or classes differ from those of the phase before"
            raise ConfigError(f"phases[{index}].data", "", problem, "name one data.tokenizer for all, outside phases")


def check_unchanged(config: Config, manifest: Manifest, datas: list[Data]) -> None:
    """A run goes on with the samples that it began with.

    Raises:
        ConfigError: if the data, or what is made of it, has changed since the checkpoint.
    """
    for index, (then, now) in enumerate(zip(manifest.data, (d.fingerprint for d in datas), strict=True)):
        if then != now:
            key = f"phases[{index}].data.source" if len(datas) > 1 else "data.source"
            problem = f"the data has changed since the checkpoint was made ({then} then, {now} now)"
            raise ConfigError(
                key, phases(config)[index].data.source, problem, "bring it back, or choose another name=..."
            )
