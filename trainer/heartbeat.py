"""Detects dead or hung ranks within seconds, names them, and writes what every rank is doing to a file.

Collectives time out too, but their timeout must be longer than the longest legitimate wait, such as tokenizing a corpus. Beats are
sent by a separate thread: they continue while a rank waits in a collective, and stop when a process, a node or a link fails. They
say where their rank is (`bellwether.trainer.arrival`), so that a rank that lives and does not move on is known too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from bellwether.trainer import error_file, run_paths, signals, stack_dump
from bellwether.trainer.arrival import (
    CHECKPOINT,
    ActivityLog,
    Hang,
    HangDetector,
    Limits,
    Place,
    SaveLog,
    behind,
    describe,
    key,
    place,
)
from bellwether.trainer.distributed import World, run_on_rank0
from bellwether.trainer.heartbeat_file import HeartbeatFile, furthest_behind
from bellwether.trainer.log import EVERY_RANK
from bellwether.trainer.store import SignedStore, connect

log = logging.getLogger(__name__)

_NO_BEAT = {"n": 0, "host": "an unknown host", **ActivityLog().beat(), "saving": SaveLog().beat()}


class Heartbeat:
    """Beats of all ranks through torch's store: rank 0 watches all ranks, and all watch rank 0. Collective.

    A rank that is silent for ``silence`` seconds ends the run, and so does one that lives and does not move on for longer than
    ``limits`` allow; before that all ranks dump their stacks. Rank 0 reports which rank, on which host, and what it was doing.
    Every rank that still receives this exits with status `signals.LOST`, and so does one that cannot reach rank 0: a launcher
    that waits for its processes never waits forever.

    Args:
        run: the run directory; rank 0 keeps ``logs/heartbeat.json`` in it up to date.
        silence: seconds; 0 never ends the run and only keeps the file.
        limits: None: a rank may be in an activity for any time.
        keep: number of dumps of stacks to keep in the run directory.
    """

    def __init__(self, run: Path, world: World, silence: float, limits: Limits | None = None, keep: int = 5) -> None:
        self.run, self.file = run, run / run_paths.HEARTBEAT
        self.world, self.silence, self.keep = world, silence, keep
        self._attempt = os.environ.get("BELLWETHER_ATTEMPT", "")
        self.total = 0  # steps of the run, for readers of the file
        self.period = min(5.0, silence / 6) if silence else 5.0
        self._log = ActivityLog()
        self.saves = SaveLog()  # of the checkpoints, for the one that writes them
        no_limits = Limits(factor=0)
        self._detector = HangDetector(lambda doing: (limits or no_limits).of(doing, self._log.durations(doing)))
        self._dump: _Dump | None = None  # the newest, since the run moved on
        self._writing: threading.Thread | None = None  # this rank's files of it
        self._beat_count, self._reported = 0, False
        self._last_contact = time.monotonic()  # with rank 0's store
        self._own_beat: dict[str, Any] = {}
        self._moved_on = time.monotonic()  # when this rank was seen at a new place
        self._beats: dict[int, dict[str, Any]] = {}  # the newest beat of each watched rank
        self._unchanged_since: dict[int, float] = {}
        self._closed = threading.Event()
        self._store: SignedStore | None = None
        if world.size > 1:
            # torchrun's store outlives a restart, with the keys of earlier attempts in it.
            nonce = run_on_rank0(world, lambda: uuid.uuid4().hex)
            self._store = SignedStore(connect(), f"heartbeat/{nonce}/", world.secret)
        self._send()
        if self._store is not None:
            dist.barrier()  # after this, rank 0 finds a beat of every rank
        if world.is_main:
            self._writer = HeartbeatFile(self.file, self._content)
            signals.before_exit(
                lambda status: self._writer.write("saved" if status == signals.SAVED else "stopped", wait=2)
            )
        for loop in (self._beat_loop, self._watch_loop) if silence else (self._beat_loop,):
            threading.Thread(target=loop, daemon=True).start()
        if world.is_main:
            self._receive()
            self._writer.write(None, wait=10)  # so that a run that hangs in its first seconds leaves a file too

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, signals.LostRank):
            self.close("lost", str(error))
        elif kind is not None:
            self.close("failed", f"{kind.__name__}: {' '.join(str(error).split())[:300]}")

    def at(self, step: int, activity: str) -> None:
        """Set what this rank is doing after `step` steps of the run. Costs microseconds. To be called by all ranks alike."""
        self._log.enter(step, activity)

    def saved(self, seconds: float) -> None:
        """A checkpoint has taken so long until it was published."""
        self._log.saved(seconds)

    def stop_watching(self) -> None:
        """From now on no rank ends the run because of another, which may leave; the file is kept up to date. To be called by all."""
        self.silence = 0.0
        stack_dump.disarm()

    def close(self, ended: str, failure: str | None = None) -> None:
        """Send no more beats. With ``failure``, the other ranks exit soon instead of waiting for this one in a collective.

        Args:
            ended: ``finished``, ``stopped``, ``diverged``, ``saved`` (after a signal), ``lost`` or ``failed``, for the file. The exit status
                of srun and mpirun says less, because they kill the ranks that exit later than the first.
            failure: the error that ended this rank.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        if self.silence:
            stack_dump.disarm()
        if ended == "failed" and self._store is not None:
            with contextlib.suppress(RuntimeError):
                reason = f"rank {self.world.rank} on {socket.gethostname()} failed: {failure}"
                self._store.set("order", {"end": reason, "failed": True})
        if self.world.is_main:
            with contextlib.suppress(RuntimeError):
                self._send()
                self._receive()
            self._writer.write(ended, wait=10, reason=failure)

    def _beat_loop(self) -> None:
        # While rank 0 waits for the answers to a dump it looks more often.
        while not self._closed.wait(self.period if self._dump is None else min(1.0, self.period)):
            if self.silence:
                # Where another thread holds the interpreter's lock, this one cannot run, and the stacks are printed.
                stack_dump.arm(max(2 * self.period, 0.7 * self.silence))
                if self._closed.is_set() or not self.silence:
                    stack_dump.disarm()
            try:
                self._send()
                (order,) = self._store.get(["order"]) if self.silence and self._store is not None else [None]
                if order is not None and "end" in order:
                    # Where all ranks fail together, each reports its own error within a moment.
                    if not order["failed"] or not self._closed.wait(max(2.0, self.period)):
                        self._exit(order["end"], order["failed"])
                    return
                if not self.world.is_main and order is not None:
                    self._answer(order["dump"])
                elif not self.world.is_main:
                    self._dump = None
                self._receive()
                if self.world.is_main:
                    self._writer.request()
            except RuntimeError as error:  # torch's DistNetworkError and DistStoreError too
                if self.silence:
                    self._exit(f"rank 0 cannot be reached any more ({str(error).splitlines()[0]})")
            self._last_contact = time.monotonic()

    def _answer(self, folder: str) -> None:
        """Dump this rank's stacks into a folder, once, and tell rank 0 where the main thread is."""
        if (self._dump is not None and self._dump.folder == folder) or not stack_dump.is_folder(folder):
            return
        self._dump = _Dump(folder)
        if self._store is not None:  # first: the file system may be what hangs
            self._store.set(f"frame/{folder}/{self.world.rank}", self._frame())
        self._writing = stack_dump.in_thread(
            lambda: stack_dump.write(self.run / stack_dump.FOLDERS / folder, self.world.rank)
        )

    def _send(self) -> None:
        """Send this rank's beat."""
        self._beat_count += 1
        before, here = self._own_beat, {**self._log.beat(), "saving": self.saves.beat()}
        if not before or place(here) != place(before):
            self._moved_on = time.monotonic()
        self._own_beat = {"n": self._beat_count, "host": socket.gethostname(), **here}
        if self._store is not None:
            self._store.set(f"beat/{self.world.rank}", self._own_beat)

    def _receive(self) -> None:
        """Receive the beats of the watched ranks, and end the run where one is silent."""
        now = time.monotonic()
        if now - self._last_contact > self.silence:
            self._unchanged_since.clear()  # this process was suspended, by a debugger or SLURM, and its clock with it
        if now - self._last_contact > 3 * self.period:
            self._detector.forget()
        if self._store is None:
            beats = [self._own_beat]
        else:
            watched = range(self.world.size) if self.world.is_main else [0]
            beats = self._store.get([f"beat/{rank}" for rank in watched])
        for rank, beat in enumerate(beats):
            known = self._beats.setdefault(rank, _NO_BEAT)
            # A repeated older beat does not count either: anybody can copy one.
            if beat is not None and beat["n"] > known["n"]:
                self._beats[rank], self._unchanged_since[rank] = beat, now
            self._unchanged_since.setdefault(rank, now)
        if not self.silence or self._closed.is_set():
            return
        silent = [rank for rank in self._beats if now - self._unchanged_since[rank] > self.silence]
        if now - self._moved_on < self.silence / 2:
            # A rank that is dead stops the others in the next collective. Where they move on, a stranger overwrites beats.
            silent = []
        if silent and self._store is not None:
            reason = "; ".join(self._last_seen(rank, now) for rank in silent[:4])
            self._end(reason + (f" and {len(silent) - 4} more ranks" if len(silent) > 4 else ""))
        elif self.world.is_main:
            hang = self._detector.look(self._beats, now)
            # A rank that may be dead or suspended is no rank that lives and does not move on.
            if all(now - since <= 3 * self.period for since in self._unchanged_since.values()):
                self._suspect(hang)

    def _suspect(self, hang: Hang | None) -> None:
        """On rank 0: have all ranks dump their stacks when the run hangs, and then end it, unless it has moved on."""
        if self._dump is not None and (hang is None or hang.place != self._dump.place):
            log.warning(
                "the run has moved on after %.0f s; the stacks of that time are in %s", self._dump.seconds, self._folder
            )
            self._dump = None
            if self._store is not None:
                self._store.set("order", None)
        if hang is None:
            return
        if self._dump is None:
            folder = stack_dump.folder(self._log.step)
            stack_dump.prune(self.run, self.keep - 1)
            self._answer(folder)
            self._dump = _Dump(folder, hang.place, hang.seconds, time.monotonic() + 2 * self.period)
            if self._store is not None:
                self._store.set("order", {"dump": folder})
            return
        self._dump.seconds = hang.seconds
        frames = self._frames(self._dump.folder)
        if len(frames) == self.world.size or time.monotonic() > self._dump.deadline:
            text = describe(self._beats, hang.seconds, frames)
            reason = f"{text}. More than {hang.limit:.0f} s is a hang (engine.{key(hang.activity)})"
            into = self._folder
            stack_dump.in_thread(lambda: stack_dump.write_summary(into, reason, frames))
            self._end(f"{reason}; the stacks of all ranks are in {into}")

    @property
    def _folder(self) -> Path:
        assert self._dump is not None
        return self.run / stack_dump.FOLDERS / self._dump.folder

    def _frame(self) -> str:
        """Where this rank is: in the thread that writes a checkpoint, if the training waits for that."""
        thread = self.saves.thread if self._log.activity == CHECKPOINT else None
        return stack_dump.frame(thread)

    def _frames(self, folder: str) -> dict[int, str]:
        """Where the main threads of the ranks are that have answered, by rank."""
        if self._store is None:
            return {0: self._frame()}
        answers = self._store.get([f"frame/{folder}/{rank}" for rank in range(self.world.size)])
        return {rank: str(answer) for rank, answer in enumerate(answers) if answer is not None}

    def _end(self, reason: str) -> None:
        """End the run on all ranks that can still read the reason, and here."""
        if self._store is not None:
            self._store.set("order", {"end": reason, "failed": False})
            if self.world.is_main:
                # Now: a launcher may kill this rank when the first of the others has exited.
                self._report(reason)
                self._writer.write("lost", wait=3, reason=reason)
            time.sleep(2 * self.period)  # for the others to read it
        self._exit(reason)

    def _last_seen(self, rank: int, now: float) -> str:
        beat = self._beats[rank]
        return (
            f"rank {rank} on {beat['host']} has been silent for {now - self._unchanged_since[rank]:.0f} s; "
            f"last heard at step {beat['step']:,}, {beat['doing']}"
        )

    def _watch_loop(self) -> None:
        """Watch the beat thread, which may itself hang over a link that drops all packets. This thread is never in a call."""
        last = time.monotonic()
        while not self._closed.wait(self.period):
            now = time.monotonic()
            if now - last > self.silence / 2:
                self._last_contact = now  # the process was suspended
            last = now
            if now - self._last_contact > self.silence + 2 * self.period:
                self._exit(f"rank 0 has not answered for {now - self._last_contact:.0f} s")

    def _content(self) -> dict[str, Any]:
        """What the file holds besides its time and how the run has ended."""
        now, beats, since = time.monotonic(), dict(self._beats), dict(self._unchanged_since)
        return {
            "attempt": self._attempt, "step": self._log.step, "total": self.total, "doing": self._log.activity, "ranks": self.world.size,
            "behind": len(behind(beats)) if beats else 0, "unmoved_s": round(self._detector.seconds(now), 1),
            "furthest_behind": furthest_behind(beats, {rank: now - since.get(rank, now) for rank in beats}),
        }  # fmt: skip

    def _exit(self, reason: str, failed: bool = False) -> None:
        """Exit this process, which may hang in any call.

        Args:
            failed: because of another rank's error, as opposed to its silence.
        """
        if self._closed.is_set():
            return
        if self._writing is not None:
            self._writing.join(3)
        if self.world.is_main:
            self._writer.write("failed" if failed else "lost", wait=3, reason=reason)
        self._report(reason)
        error_file.write(RuntimeError(reason))
        os._exit(1 if failed else signals.LOST)

    def _report(self, reason: str) -> None:
        if not self._reported:
            log.error("exiting: %s", reason, extra=EVERY_RANK)
        self._reported = True


@dataclass
class _Dump:
    """A dump of stacks that rank 0 has asked for. All but the folder is known to rank 0 alone."""

    folder: str
    place: Place = (0, 0)
    seconds: float = 0.0  # for which the run had not moved on
    deadline: float = 0.0  # for the answers
