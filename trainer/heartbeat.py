"""Detects dead or hung ranks within seconds, and writes what every rank is doing to a file.

Collectives time out too, but their timeout must be longer than the longest legitimate wait, such as a checkpoint on a slow file
system. Beats are sent by a separate thread: they continue while a rank waits in a collective, and stop when a process, a node or
a link fails.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import torch.distributed as dist

from bellwether.trainer import run_paths, signals
from bellwether.trainer.distributed import World, run_on_rank0
from bellwether.trainer.log import EVERY_RANK
from bellwether.trainer.store import SignedStore, connect

log = logging.getLogger(__name__)

_RANKS_IN_FILE = 16  # those furthest behind
_NO_BEAT = {"n": 0, "host": "an unknown host", "step": 0, "doing": "start"}


class Heartbeat:
    """Beats of all ranks through torch's store: rank 0 watches all ranks, and all watch rank 0. Collective.

    A rank that is silent for ``silence`` seconds ends the run. Rank 0 reports which one, on which host, and what it was doing
    last. Every rank that still receives this exits with status `signals.LOST`, and so does one that cannot reach rank 0: a
    launcher that waits for its processes never waits forever.

    Args:
        run: the run directory; rank 0 keeps ``logs/heartbeat.json`` in it up to date.
        silence: seconds; 0 never ends the run and only keeps the file.
    """

    def __init__(self, run: Path, world: World, silence: float) -> None:
        self.file, self.world, self.silence = run / run_paths.HEARTBEAT, world, silence
        self.total = 0  # steps of the run, for readers of the file
        self.period = min(5.0, silence / 6) if silence else 5.0
        self._step, self._activity = 0, "start"
        self._beat_count = 0
        self._last_contact = time.monotonic()  # with rank 0's store
        self._own_beat: dict[str, Any] = {}
        self._beats: dict[int, dict[str, Any]] = {}  # the newest beat of each watched rank
        self._unchanged_since: dict[int, float] = {}
        self._closed = threading.Event()
        self._ended: str | None = None
        self._write_requested, self._written = threading.Event(), threading.Event()
        self._store: SignedStore | None = None
        if world.size > 1:
            # torchrun's store outlives a restart, with the keys of earlier attempts in it.
            nonce = run_on_rank0(world, lambda: uuid.uuid4().hex)
            self._store = SignedStore(connect(), f"heartbeat/{nonce}/", world.secret)
        self._send()
        if self._store is not None:
            dist.barrier()  # after this, rank 0 finds a beat of every rank
        for loop in (self._beat_loop, self._watch_loop) if silence else (self._beat_loop,):
            threading.Thread(target=loop, daemon=True).start()
        if world.is_main:
            self._receive()
            threading.Thread(target=self._file_loop, daemon=True).start()
            self._write(None, wait=10)  # so that a run that hangs in its first seconds leaves a file too

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is not None:
            self.close("failed", f"{kind.__name__}: {' '.join(str(error).split())[:300]}")

    def at(self, step: int, activity: str) -> None:
        """Set what this rank is doing after `step` steps of the run. Costs nothing."""
        self._step, self._activity = step, activity

    def close(self, ended: str, failure: str | None = None) -> None:
        """Send no more beats. With ``failure``, the other ranks exit soon instead of waiting for this one in a collective.

        Args:
            ended: ``finished``, ``stopped``, ``diverged``, ``saved`` (after a signal) or ``failed``, for the file. The exit status
                of srun and mpirun says less, because they kill the ranks that exit later than the first.
            failure: the error that ended this rank.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        if failure is not None and self._store is not None:
            with contextlib.suppress(RuntimeError):
                self._store.set("end", f"rank {self.world.rank} on {socket.gethostname()} failed: {failure}")
        if self.world.is_main:
            with contextlib.suppress(RuntimeError):
                self._send()
                self._receive()
            self._write(ended, wait=10)

    def _beat_loop(self) -> None:
        while not self._closed.wait(self.period):
            try:
                self._send()
                (reason,) = self._store.get(["end"]) if self.silence and self._store is not None else [None]
                if reason is not None:
                    # Where all ranks fail together, each reports its own error within a moment.
                    if not self._closed.wait(max(2.0, self.period)):
                        self._exit(reason, failed=" failed: " in reason)
                    return
                self._receive()
                if self.world.is_main:
                    self._write_requested.set()
            except RuntimeError as error:  # torch's DistNetworkError and DistStoreError too
                if self.silence:
                    self._exit(f"rank 0 cannot be reached any more ({str(error).splitlines()[0]})")
            self._last_contact = time.monotonic()

    def _send(self) -> None:
        """Send this rank's beat."""
        self._beat_count += 1
        self._own_beat = {
            "n": self._beat_count, "host": socket.gethostname(), "step": self._step, "doing": self._activity
        }  # fmt: skip
        if self._store is not None:
            self._store.set(f"beat/{self.world.rank}", self._own_beat)

    def _receive(self) -> None:
        """Receive the beats of the watched ranks, and end the run where one is silent."""
        now = time.monotonic()
        if now - self._last_contact > self.silence:
            self._unchanged_since.clear()  # this process was suspended, by a debugger or SLURM, and its clock with it
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
        if not self.silence or self._store is None or self._closed.is_set():
            return
        silent = [rank for rank in self._beats if now - self._unchanged_since[rank] > self.silence]
        if silent:
            reason = "; ".join(self._last_seen(rank, now) for rank in silent[:4])
            reason += f" and {len(silent) - 4} more ranks" if len(silent) > 4 else ""
            self._store.set("end", reason)
            time.sleep(2 * self.period)  # for the ranks that can still read the reason
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

    def _write(self, ended: str | None, wait: float) -> None:
        """Request a write of the file, the last one with ``ended``, and wait at most these seconds for it."""
        self._ended = ended
        self._written.clear()
        self._write_requested.set()
        self._written.wait(wait)

    def _file_loop(self) -> None:
        """Write the file in a separate thread: a hanging file system must not stop the beats."""
        written_step = 0
        while True:
            self._write_requested.wait()
            self._write_requested.clear()
            ended, step = self._ended, self._step
            content = {
                "time": round(time.time(), 3),
                "step": step,
                # How far a step count in this file may lag behind: a killed process cannot write its last one.
                "steps": step - written_step,
                "total": self.total,
                "doing": self._activity,
                "ended": ended,
                "ranks": self.world.size,
                "furthest_behind": self._furthest_behind(),
            }
            written_step = step
            with contextlib.suppress(OSError):  # a full disk is reported by the checkpoint or the metrics
                run_paths.publish(self.file, json.dumps(content, indent=1))
            if ended == self._ended:
                self._written.set()
            if ended is not None:
                return

    def _furthest_behind(self) -> list[dict[str, Any]]:
        """The ranks at the lowest step, those that have been silent longest first."""
        now, beats, since = time.monotonic(), dict(self._beats), dict(self._unchanged_since)
        silent = {rank: now - since.get(rank, now) for rank in beats}
        behind = sorted(beats, key=lambda rank: (beats[rank]["step"], -silent[rank]))
        return [
            {"rank": rank, **{k: v for k, v in beats[rank].items() if k != "n"}, "silent_s": round(silent[rank], 1)}
            for rank in behind[:_RANKS_IN_FILE]
        ]

    def _exit(self, reason: str, failed: bool = False) -> None:
        """Exit this process, which may hang in any call.

        Args:
            failed: because of another rank's error, as opposed to its silence.
        """
        if self._closed.is_set():
            return
        from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

        if self.world.is_main:
            self._write("failed" if failed else "lost", wait=3)
        log.error("exiting: %s", reason, extra=EVERY_RANK)
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            ErrorHandler().record_exception(RuntimeError(reason))
        os._exit(1 if failed else signals.LOST)
