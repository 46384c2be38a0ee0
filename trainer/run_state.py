"""The state of a run that outlives its phases."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from bellwether.trainer import checkpoint
from bellwether.trainer.best import BestEvaluation
from bellwether.trainer.checkpoint import Position, Saver
from bellwether.trainer.config import Config
from bellwether.trainer.data import Dataset
from bellwether.trainer.distributed import World
from bellwether.trainer.divergence import DivergenceDetector
from bellwether.trainer.heartbeat import Heartbeat
from bellwether.trainer.metrics import Metrics
from bellwether.trainer.phases import Phase
from bellwether.trainer.preemption import StopConsensus
from bellwether.trainer.progress import Progress


@dataclass
class Run:
    """A run in one process. Everything but the display is the same on all ranks."""

    config: Config
    directory: Path
    world: World
    phases: list[Phase]
    datasets: list[Dataset]  # one for each phase
    position: Position
    newest_checkpoint: Path | None  # published; the next phase starts from it
    verified_checkpoint: Path | None  # whose checksums were compared at the start
    stop_step: int  # the run's last step, or an earlier one
    heartbeat: Heartbeat
    stop_consensus: StopConsensus
    divergence: DivergenceDetector
    metrics: Metrics
    saver: Saver
    progress: Progress | None  # None except on rank 0
    pending_eval: bool = False  # the newest checkpoint was saved, but the process ended before its evaluation
    pending_end: bool = False  # the process ended before it wrote how the run had ended
    target_reached: bool = False
    best: BestEvaluation | None = None  # None: the config names no score
    diverged: bool = False
    late_saves: int = 0  # checkpoints that waited long for the one before
    started: float = field(default_factory=time.time)

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def has_work(self) -> bool:
        """Whether there is anything left to train or evaluate."""
        return (self.position.step < self.stop_step or self.pending_eval) and not self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether the run ends before its last step: its target is reached, or its score becomes no better."""
        return self.target_reached or self.out_of_patience

    @property
    def out_of_patience(self) -> bool:
        """Whether the last evaluations were no better than the best one. Counted in the last phase alone."""
        patience, last = self.config.evaluate.patience, self.phases[-1]
        if self.best is None or patience is None or self.position.step <= last.first_step:
            return False
        return self.best.since >= patience and self.best.step > last.first_step

    @property
    def best_checkpoint(self) -> Path | None:
        """The checkpoint of the best evaluation, or None."""
        path = None if self.best is None or self.best.step < 0 else checkpoint.path_of(self.checkpoints, self.best.step)
        return path if path is not None and path.is_dir() else None

    @property
    def finished(self) -> bool:
        return self.has_ended or (self.position.step == self.phases[-1].last_step and not self.diverged)

    @property
    def current_phase(self) -> Phase:
        """The phase of the next step, or the one that the pending evaluation belongs to."""
        if self.pending_eval:
            return self.phases[self.position.phase]
        return next((p for p in self.phases if p.first_step <= self.position.step < p.last_step), self.phases[-1])

    def samples_at(self, step: int) -> int:
        """The run's samples after a step."""
        return next((p for p in self.phases if step <= p.last_step), self.phases[-1]).samples_at(step)

    def note(self, text: str) -> None:
        """Show a line between the lines of progress."""
        if self.progress is not None:
            self.progress.note(text)
