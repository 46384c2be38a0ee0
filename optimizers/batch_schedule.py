"""The batch size over a training that counts samples: constant, or changing at given numbers of samples (batch warm-up)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple


class Segment(NamedTuple):
    """Consecutive updates of one batch size."""

    first_step: int  # updates before this segment
    first_sample: int  # samples before it
    batch: int


class BatchSchedule:
    """Converts between updates and samples where the batch size changes.

    Args:
        batch: the batch size, or ``[(samples, batch), ...]``: from how many samples on each holds, the first from 0. A batch size
            begins with the first update that begins at or after its number of samples.

    Raises:
        ValueError: if the numbers of samples do not ascend from 0, or a batch size is below 1.

    >>> schedule = BatchSchedule([(0, 64), (100, 128)])
    >>> [schedule.samples(step) for step in range(5)], [schedule.batch(step) for step in range(4)]
    ([0, 64, 128, 256, 384], [64, 64, 128, 128])
    >>> schedule.step(256), schedule.step(300), schedule.steps_for(300)
    (3, 3, 4)
    """

    def __init__(self, batch: int | Sequence[tuple[int, int]]) -> None:
        entries = [(0, batch)] if isinstance(batch, int) else [(int(at), int(size)) for at, size in batch]
        if not entries or entries[0][0] != 0 or min(size for _, size in entries) < 1:
            raise ValueError(
                f"batch={batch}: must be at least 1, or pairs of samples and batch size, the first from 0 samples on"
            )
        if any(later <= earlier for (earlier, _), (later, _) in itertools.pairwise(entries)):
            raise ValueError(f"batch={batch}: the numbers of samples must ascend")
        segments = [Segment(0, 0, entries[0][1])]
        for samples, size in entries[1:]:
            step, sample, before = segments[-1]
            steps = max(0, -(-(samples - sample) // before))
            if not steps:  # no update begins while the one before holds
                segments.pop()
            segments.append(Segment(step + steps, sample + steps * before, size))
        self.segments = tuple(segments)

    @property
    def is_constant(self) -> bool:
        return len(self.segments) == 1

    def samples(self, step: int) -> int:
        """The samples of the first ``step`` updates."""
        segment = self._at_step(step)
        return segment.first_sample + (step - segment.first_step) * segment.batch

    def batch(self, step: int) -> int:
        """The batch size of the update after ``step`` updates."""
        return self._at_step(step).batch

    def step(self, samples: int) -> int:
        """The updates that are complete after this many samples."""
        segment = self._at_sample(samples)
        return segment.first_step + (samples - segment.first_sample) // segment.batch

    def steps_for(self, samples: int) -> int:
        """The fewest updates that take this many samples."""
        step = self.step(samples)
        return step + (self.samples(step) < samples)

    def progress(self, samples: float) -> float:
        """`step` with the fraction of the update that is not complete."""
        segment = self._at_sample(samples)
        return segment.first_step + (samples - segment.first_sample) / segment.batch

    def _at_step(self, step: int) -> Segment:
        return next(segment for segment in reversed(self.segments) if segment.first_step <= max(0, step))

    def _at_sample(self, samples: float) -> Segment:
        return next(segment for segment in reversed(self.segments) if segment.first_sample <= max(0, samples))
