"""The runs of a sweep, as a pure function of SWEEP.yaml: which there are, in which order, and under which name each lies.

A name says what a run is (optimizer, batch, setting, seed), so batches, optimizers, settings and seeds can be added later,
and every run that is there keeps its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bellwether.experiments.sweep.spec import Sweep


@dataclass(frozen=True)
class Slot:
    """A run to be made, or a place for one that is not decided yet."""

    optimizer: str
    batch: int
    setting: int | None  #: number among those searched; None: the best of them, once that is known
    seed: int  #: 0 for the config's own, 1 for the next one, ...

    @property
    def cell(self) -> tuple[str, int]:
        return self.optimizer, self.batch

    @property
    def name(self) -> str:
        setting = "best" if self.setting is None else f"{self.setting:03d}"
        return f"{self.optimizer}-{self.batch}-{setting}-{self.seed}"


def slots(sweep: Sweep) -> Iterator[Slot]:
    """All runs, those first that everything else waits for: one setting everywhere, then the next."""
    cells = [(optimizer, batch) for batch in sweep.batches for optimizer in sweep.optimizers]
    every = sweep.seeds if sweep.repeat == "all" else 1
    for setting in range(max(sweep.settings(optimizer) for optimizer in sweep.optimizers)):
        for seed in range(every):
            for optimizer, batch in cells:
                if setting < sweep.settings(optimizer):
                    yield Slot(optimizer, batch, setting, seed)
    for seed in range(every, sweep.seeds):
        for optimizer, batch in cells:
            yield Slot(optimizer, batch, None, seed)
