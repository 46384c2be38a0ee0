"""The trials of a sweep: a pure function of SWEEP.yaml that gives their names and their order.

A name consists of optimizer, batch size, setting and seed. Batch sizes, optimizers, settings and seeds can therefore
be added to a sweep later without renaming existing trials.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bellwether.experiments.sweep.spec import Sweep


@dataclass(frozen=True)
class TrialId:
    """Identifies a trial, or a repetition of the best setting while that setting is still unknown."""

    optimizer: str
    batch: int
    setting: int | None  #: index of the searched setting; None: the best one, once it is known
    seed: int  #: offset from the config's seed

    @property
    def cell(self) -> tuple[str, int]:
        """Optimizer and batch size: the trials of a cell compete with each other."""
        return self.optimizer, self.batch

    @property
    def name(self) -> str:
        """Name of the trial's files below ``trials/``, as in ``lamb-256-003-0``."""
        setting = "best" if self.setting is None else f"{self.setting:03d}"
        return f"{self.optimizer}-{self.batch}-{setting}-{self.seed}"


def trial_ids(sweep: Sweep) -> Iterator[TrialId]:
    """All trials in the order in which they start: the first setting of every cell, then the second, repetitions last."""
    cells = [(optimizer, batch) for batch in sweep.batches for optimizer in sweep.optimizers]
    searched_seeds = sweep.seeds if sweep.repeat == "all" else 1
    for setting in range(max(sweep.settings(optimizer) for optimizer in sweep.optimizers)):
        for seed in range(searched_seeds):
            for optimizer, batch in cells:
                if setting < sweep.settings(optimizer):
                    yield TrialId(optimizer, batch, setting, seed)
    for seed in range(searched_seeds, sweep.seeds):
        for optimizer, batch in cells:
            yield TrialId(optimizer, batch, None, seed)
