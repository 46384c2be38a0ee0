"""That every rank is alive, and what it is doing, known within seconds and written where people can read it.

Collectives time out too, but their limit must outlast the slowest honest wait, such as a checkpoint on a busy file
system. A beat is sent by a thread of its own, so it goes on while a rank waits in a collective, and stops when a process, a
node or a link is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import torch.distributed as dist

from bellwether.trainer import run_paths, signals
from bellwether.trainer.distributed import World, run_on_rank0

_SHOWN = 16  # ranks in the file: those the furthest behind


class Heartbeat:
    """Beats of all ranks through torch's store. Rank 0 watches all, and all watch rank 0. Collective.

    A rank that has not been heard for ``silence`` seconds ends the run: rank 0 says which one, where, and what it was doing
    last, and every rank that can still hear it ends with status `signals.LOST`, as does one that cannot reach rank 0. So a
    launcher that waits for its processes never waits for ever.

    Args:
        run: the run directory; rank 0 keeps ``logs/heartbeat.json`` in it.
        silence: seconds; 0 ends nothing and only keeps the file.
    """

    def __init__(self, run: Path, world: World, silence: float) -> None:
        self.file, self.world, self.silence = run / run_paths.HEARTBEAT, world, silence
        self.total = 0  # steps of the run, for those who read the file
        self.period = min(5.0, silence / 6) if silence else 5.0
        self._step, self._doing = 0, "start"
        self._beats = 0
        self._heard = time.monotonic()
        self._own: dict[str, Any] = {}
        self._ranks: dict[int, dict[str, Any]] = {}
        self._since: dict[int, float] = {}
        self._closed = threading.Event()
        self._ended: str | None = None
        self._due, self._written = threading.Event(), threading.Event()
        self._store: dist.Store | None = None
        if world.size > 1:
            # torchrun's store outlives a restart: what an earlier launch has left there is not ours.
            nonce = run_on_rank0(world, lambda: uuid.uuid4().hex)
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            server = dist.TCPStore(address, port, is_master=False, wait_for_workers=False)
            self._store = dist.PrefixStore(f"bellwether/{nonce}", server)
        self._send()
        if self._store is not None:
            dist.barrier()  # from here on rank 0 finds a beat of everybody
        for act in (self._beat, self._watch) if silence else (self._beat,):
            threading.Thread(target=act, daemon=True).start()
        if world.main:
            self._listen()
            threading.Thread(target=self._keep_file, daemon=True).start()
            self._write(None, wait=10)  # a run that falls silent in its first seconds has left a file as well

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is not None:
            self.close("failed", f"{kind.__name__}: {' '.join(str(error).split())[:300]}")

    def at(self, step: int, doing: str) -> None:
        """Say what this rank is doing, after `step` steps of the run. Costs nothing."""
        self._step, self._doing = step, doing

    def close(self, ended: str, failure: str | None = None) -> None:
        """No more beats. With ``failure``, the others end soon, instead of waiting in a collective for this rank.

        Args:
            ended: ``finished``, ``stopped``, ``diverged``, ``saved`` (after a signal) or ``failed``, for the file. The exit status of
                srun and mpirun tells less, as they kill the ranks that are not quite as quick as the first.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        if failure is not None and self._store is not None:
            with contextlib.suppress(RuntimeError):
                self._store.set("said", f"rank {self.world.rank} on {socket.gethostname()} failed: {failure}")
                self._store.set("failed", "1")
        if self.world.main:
            with contextlib.suppress(RuntimeError):
                self._send()
                self._listen()
            self._write(ended, wait=10)

    def _beat(self) -> None:
        while not self._closed.wait(self.period):
            try:
                self._send()
                if self.silence and self._store is not None and self._store.check(["failed"]):
                    # A failure that all ranks meet is told by each rank's own error, a moment from now.
                    if not self._closed.wait(max(2.0, self.period)):
                        said = self._store.get("said").decode()
                        self._end(said, failed=" failed: " in said)
                    return
                self._listen()
                if self.world.main:
                    self._due.set()
            except RuntimeError as error:  # torch's DistNetworkError and DistStoreError too
                if self.silence:
                    self._end(f"rank 0 cannot be reached any more ({str(error).splitlines()[0]})")
            self._heard = time.monotonic()

    def _send(self) -> None:
        self._beats += 1
        self._own = {"n": self._beats, "host": socket.gethostname(), "step": self._step, "doing": self._doing}
        if self._store is not None:
            self._store.set(f"beat/{self.world.rank}", json.dumps(self._own))

    def _listen(self) -> None:
        """What the watched ranks have sent, and since when it has not changed: all for rank 0, rank 0 for all others."""
        now = time.monotonic()
        if now - self._heard > self.silence:
            self._since.clear()  # this process was stopped, by a debugger or by SLURM's suspend, and so was its clock
        if self._store is None:
            beats = [self._own]
        else:
            watched = range(self.world.size) if self.world.main else [0]
            beats = [json.loads(beat) for beat in self._store.multi_get([f"beat/{rank}" for rank in watched])]
        for rank, beat in enumerate(beats):
            if beat != self._ranks.get(rank) or rank not in self._since:
                self._ranks[rank], self._since[rank] = beat, now
        if not self.silence or self._store is None or self._closed.is_set():
            return
        silent = [rank for rank in self._ranks if now - self._since[rank] > self.silence]
        if silent:
            said = "; ".join(self._last_seen(rank, now) for rank in silent[:4])
            said += f" and {len(silent) - 4} more ranks" if len(silent) > 4 else ""
            self._store.set("said", said)
            self._store.set("failed", "1")
            time.sleep(2 * self.period)  # so that those who can still hear it know why
            self._end(said)

    def _last_seen(self, rank: int, now: float) -> str:
        beat = self._ranks[rank]
        return (
            f"rank {rank} on {beat['host']} has been silent for {now - self._since[rank]:.0f} s; "
            f"last heard at step {beat['step']:,}, {beat['doing']}"
        )

    def _watch(self) -> None:
        """Over a link that drops everything the beat itself may hang: this thread sees that, and is not in any call."""
        last = time.monotonic()
        while not self._closed.wait(self.period):
            now = time.monotonic()
            if now - last > self.silence / 2:
                self._heard = now  # stopped as a whole, see above
            last = now
            if now - self._heard > self.silence + 2 * self.period:
                self._end(f"rank 0 has not answered for {now - self._heard:.0f} s")

    def _write(self, ended: str | None, wait: float) -> None:
        """Write the file, a last time with ``ended``, and wait no longer than these seconds for a file system that hangs."""
        self._ended = ended
        self._written.clear()
        self._due.set()
        self._written.wait(wait)

    def _keep_file(self) -> None:
        """In a thread of its own: a file system that hangs is no reason for a beat to fail."""
        written_step = 0
        while True:
            self._due.wait()
            self._due.clear()
            ended, step, now = self._ended, self._step, time.monotonic()
            ranks, since = dict(self._ranks), dict(self._since)
            silent = {rank: now - since.get(rank, now) for rank in ranks}
            behind = sorted(ranks, key=lambda rank: (ranks[rank]["step"], -silent[rank]))
            table = [{"rank": rank, **ranks[rank], "silent_s": round(silent[rank], 1)} for rank in behind[:_SHOWN]]
            for row in table:
                row.pop("n")
            # steps: how far a step count in this file may lag behind, as a killed process cannot write its last one
            said = {
                "time": round(time.time(), 3), "step": step, "steps": step - written_step, "total": self.total,
                "doing": self._doing, "ended": ended, "ranks": self.world.size, "furthest_behind": table,
            }  # fmt: skip
            written_step = step
            with contextlib.suppress(OSError):  # a full disk is told by what matters: a checkpoint, the metrics
                run_paths.publish(self.file, json.dumps(said, indent=1))
            if ended == self._ended:
                self._written.set()
            if ended is not None:
                return

    def _end(self, said: str, failed: bool = False) -> None:
        """End this process, which may hang in any call. ``failed``: because of another rank's own error, not of its silence."""
        if self._closed.is_set():
            return
        from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

        if self.world.main:
            self._write("failed" if failed else "lost", wait=3)
        where = f"rank {self.world.rank} on {socket.gethostname()}"
        print(f"bellwether: {where} ends: {said}", file=sys.stderr, flush=True)
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            ErrorHandler().record_exception(RuntimeError(said))
        os._exit(1 if failed else signals.LOST)
