"""Saves the checkpoints of a run, one at a time, while training goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from bellwether.trainer.arrival import SaveLog
from bellwether.trainer.checkpoint.format import Position
from bellwether.trainer.checkpoint.save import Contents, Retention, take, write
from bellwether.trainer.checkpoint.snapshot import HostBuffer
from bellwether.trainer.control_group import ControlGroup
from bellwether.trainer.distributed import World, run_on_all_ranks
from bellwether.trainer.engine import Engine

_SECONDS_AFTER_AN_ERROR = 60.0  # for a checkpoint that is being written when the run fails


T = TypeVar("T")


@dataclass(frozen=True)
class Saved:
    """A published checkpoint and what it cost. The same on all ranks but for the seconds."""

    position: Position
    path: Path
    seconds: float  # from the step boundary until it was published
    blocked_seconds: float  # in which training stood still for it
    waited_seconds: float  # of these, for the writing


@dataclass
class _Save:
    position: Position
    began: float
    blocked: float = 0.0


class Saver:
    """Copies a checkpoint at a step boundary, and lets a thread write it. One at a time: `wait` comes before the next `start`.

    As a context manager: where training fails, a checkpoint that is being written is still published, unless that takes a minute.

    Args:
        group: for the thread; None: nothing goes on while a checkpoint is written.
        keep: number of newest checkpoints to keep.
        before_publishing: called on rank 0, in the thread, when all files are on the disk.
        log: where the writing is, for the heartbeat.
    """

    def __init__(
        self, root: Path, world: World, group: ControlGroup | None, keep: int, before_publishing: Callable[[], None],
        log: SaveLog | None = None,
    ) -> None:  # fmt: skip
        self._root, self._world, self._keep, self._before_publishing = root, world, keep, before_publishing
        self._log = log or SaveLog()
        self._group = group
        self._run_on_all_ranks = partial(run_on_all_ranks, world) if group is None else group.run_on_all_ranks
        self._buffer = HostBuffer(pinned=group is not None and world.device.type == "cuda")
        self._save: _Save | None = None
        self._written: Future[tuple[Path, float]] = Future()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self.is_saving:
            self._thread.join(_SECONDS_AFTER_AN_ERROR)
        elif kind is None and self._group is not None:
            self._group.close()

    @property
    def is_pending(self) -> bool:
        """Whether there is a save whose result was not taken by `wait`. The same on all ranks."""
        return self._save is not None

    @property
    def is_saving(self) -> bool:
        """Whether this rank is still writing, or waits for others."""
        return self._save is not None and not self._written.done()

    def start(
        self, engine: Engine, position: Position, data: list[str], noise: dict[str, float] | None, best: int | None,
        began: float,
    ) -> None:  # fmt: skip
        """Copy a checkpoint, and start to write it. Collective; arguments as of `bellwether.trainer.checkpoint.save.save`.

        Args:
            began: when training stopped for it, by `time.monotonic`.
        """
        assert self._save is None, "one save is in flight: wait first"
        contents = take(engine, position, self._world, data, noise, self._buffer)
        self._save, self._written = _Save(position, began), Future()
        act = partial(self._write, contents, Retention(self._keep, best), self._written)
        if self._group is not None:
            # A daemon: the process must be able to exit while another rank never answers.
            self._thread = threading.Thread(target=act, name="save-checkpoint", daemon=True)
            self._thread.start()
        else:
            act()
            self._buffer.release()
        self._save.blocked = time.monotonic() - began

    def wait(self) -> Saved:
        """Wait until the checkpoint is published. Collective.

        Raises:
            OSError: on all ranks, if any could not write its part.
        """
        assert self._save is not None, "no save is in flight"
        one, self._save, began = self._save, None, time.monotonic()
        path, ended = self._written.result()
        waited = time.monotonic() - began
        return Saved(one.position, path, ended - one.began, one.blocked + waited, waited)

    def _write(self, contents: Contents, retention: Retention, written: Future[tuple[Path, float]]) -> None:
        self._log.begin(contents.manifest.position.step)
        contents = replace(contents, snapshot=replace(contents.snapshot, on_block=self._log.moved))
        try:
            path = write(self._root, contents, self._world, self._logged, retention, self._before_publishing)
        except BaseException as error:
            self._log.end()
            written.set_exception(error)
        else:
            self._log.end()  # first: the next one may begin as soon as the result is there
            written.set_result((path, time.monotonic()))

    def _logged(self, act: Callable[[], T]) -> list[T]:
        """`run_on_all_ranks`, with an entry in the log when this rank has acted."""

        def acted() -> T:
            try:
                return act()
            finally:
                self._log.begin_collective()

        return self._run_on_all_ranks(acted)
