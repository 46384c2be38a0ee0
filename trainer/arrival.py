"""Which rank the others wait for, and for how long no rank has moved on: from the ranks' beats (`bellwether.trainer.heartbeat`).

All ranks enter the same activities in the same order, and begin the same collectives in each. So a rank's place is a pair of counts:
activities entered, collectives begun in the current one. A rank that waits in a collective has begun it; the rank that it waits for
has not, and is at a lower place. Where all ranks are at one place, no rank is behind: a link or a GPU hangs, or all wait for a file
system. While the ranks wait for a checkpoint that their threads write, the place of the thread in its own collectives decides.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.distributed as dist

START, END, START_OF_PHASE = "start", "end", "start of a phase"
DATA, EVALUATION_DATA = "waiting for data", "waiting for evaluation data"
BACKWARD, UPDATE = "forward and backward", "forward, backward and update"
METRICS, TRAJECTORY, EVALUATION, CHECKPOINT = "metrics", "trajectory", "evaluation", "checkpoint"
REPLICAS, WRITING = "comparing weights", "writing metrics"

_STEPS_OF_HISTORY = 3  # of a phase; its first steps compile and build
_REMEMBERED = 64  # durations of an activity

Beat = Mapping[str, Any]
Place = tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """How long a rank may be in one activity before the run has hung. All but ``factor`` are in seconds."""

    factor: float = 5.0  # of the median of the activity's earlier durations; 0: no limit
    seconds: float = 30.0  # at least
    data: float = 120.0  # at least, waiting for data
    files: float = 600.0  # at least, writing files

    def of(self, activity: str, durations: Sequence[float]) -> float | None:
        """The limit of an activity after earlier durations; None where there are none to judge by."""
        if not self.factor or not durations:
            return None
        least = {"hang_timeout_data": self.data, "hang_timeout_files": self.files}.get(key(activity), self.seconds)
        # Twice the longest: the first batch of an evaluation, whose workers start, takes longer than the others each time.
        return max(least, self.factor * statistics.median(durations), 2 * max(durations))


def key(activity: str) -> str:
    """The key below ``engine`` that sets the least limit of an activity."""
    data, files = (DATA, EVALUATION_DATA), (CHECKPOINT, WRITING)
    return "hang_timeout_data" if activity in data else "hang_timeout_files" if activity in files else "hang_timeout"


class _Now(NamedTuple):
    step: int
    activity: str
    entered: int  # activities
    since: float
    begun_before: int  # collectives


class ActivityLog:
    """What this rank does, where it is, and how long its activities took."""

    def __init__(self) -> None:
        # Replaced as a whole, because the thread of the heartbeat reads it.
        self._now = _Now(0, START, 0, time.monotonic(), 0)
        self._durations: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))
        self._first_step: int | None = None  # from which this phase continued

    @property
    def step(self) -> int:
        return self._now.step

    @property
    def activity(self) -> str:
        return self._now.activity

    def enter(self, step: int, activity: str) -> None:
        """Begin an activity after `step` steps of the run. Costs a few microseconds; to be called on all ranks alike."""
        last, now = self._now, time.monotonic()
        if activity == START_OF_PHASE:
            for other in set(self._durations) - {CHECKPOINT}:
                self._durations[other].clear()
            self._first_step = step
        elif last.activity != CHECKPOINT and self._knows_steps():
            self._durations[last.activity].append(now - last.since)
        self._now = _Now(step, activity, last.entered + 1, now, collectives_begun())

    def saved(self, seconds: float) -> None:
        """A checkpoint has taken so long until it was published, wherever it was written."""
        self._durations[CHECKPOINT].append(seconds)

    def beat(self) -> dict[str, Any]:
        """The values of a beat that say where this rank is."""
        now = self._now
        return {
            "step": now.step, "doing": now.activity, "entered": now.entered,
            "begun": max(0, collectives_begun() - now.begun_before), "for_s": round(time.monotonic() - now.since, 1),
        }  # fmt: skip

    def durations(self, activity: str) -> list[float]:
        """Earlier durations of an activity in this phase, in seconds; of checkpoints in the run."""
        return list(self._durations.get(activity, ()))

    def _knows_steps(self) -> bool:
        return self._first_step is not None and self._now.step >= self._first_step + _STEPS_OF_HISTORY


class SaveLog:
    """Where a rank is in writing its checkpoints, which a thread may do.

    `moved` is no place, since ranks have parts of different sizes: it distinguishes a slow file system from one that hangs.
    """

    def __init__(self) -> None:
        self.thread: int | None = None  # that writes, as `threading.get_ident`; None: nothing is written
        self._step = self._saves = self._begun = self._moved = 0
        self._since = time.monotonic()

    def begin(self, step: int) -> None:
        """This thread begins to write the checkpoint of a step."""
        self._step, self._saves, self._begun, self._moved = step, self._saves + 1, 0, 0
        self.moved()
        self.thread = threading.get_ident()

    def begin_collective(self) -> None:
        """This rank has done its part, and waits for what the others do."""
        self._begun += 1
        self.moved()

    def moved(self) -> None:
        """Some more of this rank's file is written."""
        self._moved += 1
        self._since = time.monotonic()

    def end(self) -> None:
        """The checkpoint is published, or cannot be."""
        self.begin_collective()
        self.thread = None

    def beat(self) -> dict[str, Any]:
        """The part of a beat that says where this rank is in its newest checkpoint."""
        return {
            "writing": self.thread is not None, "step": self._step, "entered": self._saves, "begun": self._begun,
            "moved": self._moved, "for_s": round(time.monotonic() - self._since, 1),
        }  # fmt: skip


def collectives_begun() -> int:
    """The number of collectives that this process has begun, in all process groups that torch knows."""
    groups: list[Any] = (
        list(dist.distributed_c10d._world.pg_map) if dist.is_available() and dist.is_initialized() else []
    )
    begun = 0
    for group in groups:
        try:
            begun += group._get_sequence_number_for_group()
        except (RuntimeError, AttributeError):  # a backend that does not count, alike on all ranks
            continue
    return begun


def place(beat: Beat) -> Place:
    """Where a rank is: activities entered, collectives begun in the current one; and so in writing a checkpoint it waits for."""
    saving = beat["saving"] if beat["doing"] == CHECKPOINT else {"entered": 0, "begun": 0}
    return beat["entered"], beat["begun"], saving["entered"], saving["begun"]


def waits_for_writing(beat: Beat) -> bool:
    """Whether a rank's training waits until its checkpoint is written."""
    return beat["doing"] == CHECKPOINT and beat["saving"]["writing"]


def behind(beats: Mapping[int, Beat]) -> list[int]:
    """The ranks that the others wait for: those at the lowest place, unless all ranks are there."""
    lowest = min(map(place, beats.values()))
    ranks = [rank for rank, beat in beats.items() if place(beat) == lowest]
    return ranks if len(ranks) < len(beats) or len(beats) == 1 else []


@dataclass(frozen=True)
class Hang:
    """No rank at the lowest place has moved on for longer than its activity may take."""

    place: Place
    seconds: float
    limit: float
    activity: str


class HangDetector:
    """Detects that the ranks at the lowest place do not move on.

    Args:
        limit: of an activity, in seconds, or None.
    """

    def __init__(self, limit: Callable[[str], float | None]) -> None:
        self._limit = limit
        self._place: Place | None = None
        self._moved = 0  # in the files of the ranks there
        self._since = 0.0

    def forget(self) -> None:
        """Count from now: this process itself was suspended."""
        self._place = None

    def seconds(self, now: float) -> float:
        """For how long no rank at the lowest place has moved on."""
        return 0.0 if self._place is None else now - self._since

    def look(self, beats: Mapping[int, Beat], now: float) -> Hang | None:
        """Whether the run hangs, by the newest beats of all ranks.

        Args:
            now: of a monotonic clock, in seconds.
        """
        lowest = min(map(place, beats.values()))
        there = [beat for beat in beats.values() if place(beat) == lowest]
        writing = [beat["saving"] for beat in there if waits_for_writing(beat)]
        moved = sum(saving["moved"] for saving in writing)
        if (lowest, moved) != (self._place, self._moved):
            self._place, self._moved, self._since = lowest, moved, now
            # A thread may have hung long before the training has to wait for it.
            self._since -= min((saving["for_s"] for saving in writing), default=0.0)
        limit, seconds = self._limit(there[0]["doing"]), now - self._since
        return Hang(lowest, seconds, limit, there[0]["doing"]) if limit is not None and seconds > limit else None


def describe(beats: Mapping[int, Beat], seconds: float, frames: Mapping[int, str]) -> str:
    """Which ranks do not arrive, where they are, and who waits for them; or that it cannot be told.

    Args:
        seconds: for which no rank at the lowest place has moved on.
        frames: innermost Python frame of the ranks that have sent it.
    """
    ranks = behind(beats)
    if not ranks:
        any_beat = next(iter(beats.values()))
        text = (
            f"no rank is behind: all {len(beats):,} ranks have been in the same place of {any_beat['doing']!r} after step "
            f"{any_beat['step']:,} for {seconds:.0f} s, which a link, a GPU or a shared file system can cause"
        )
        return text + _odd_frames(beats, frames)
    shown = "; ".join(
        f"rank {rank} on {beats[rank]['host']} does not arrive: {_doing(beats[rank])} for {seconds:.0f} s"
        + (f", at {frames[rank]}" if rank in frames else "")
        for rank in ranks[:4]
    )
    shown += f" and {len(ranks) - 4:,} more ranks" if len(ranks) > 4 else ""
    others = [beat for rank, beat in beats.items() if rank not in ranks]
    if not others:
        return shown
    ahead, last = max(others, key=place), beats[ranks[0]]
    what = f"in {ahead['doing']}"
    if ahead["entered"] == last["entered"]:
        if waits_for_writing(last) and ahead["begun"] == last["begun"]:
            ahead, last = ahead["saving"], last["saving"]
        what = f"in collective {ahead['begun']} of it, where it has begun {last['begun']}"
    waiting = "1 other rank waits" if len(others) == 1 else f"{len(others):,} other ranks wait"
    return f"{shown}; {waiting} {what}"


def _doing(beat: Beat) -> str:
    if waits_for_writing(beat):
        return f"writing the checkpoint of step {beat['saving']['step']:,}"
    return f"{beat['doing']} after step {beat['step']:,}"


def _odd_frames(beats: Mapping[int, Beat], frames: Mapping[int, str]) -> str:
    """The few ranks whose Python code is elsewhere than that of most."""
    usual = statistics.mode(frames.values()) if frames else ""
    odd = [rank for rank in sorted(frames) if frames[rank] != usual]
    if not odd or 2 * len(odd) >= len(frames):
        return ""
    shown = ", ".join(f"rank {rank} on {beats[rank]['host']} at {frames[rank]}" for rank in odd[:4])
    return f". Most are at {usual}, but {shown}"
