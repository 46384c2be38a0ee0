"""Stop consensus: whether the run stops at the next step boundary, known to one rank first and agreed by all."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from datetime import timedelta
from queue import SimpleQueue
from typing import NamedTuple

from bellwether.trainer import signals
from bellwether.trainer.control_group import ControlGroup
from bellwether.trainer.distributed import World


class Answer(NamedTuple):
    """What all ranks have agreed on. The same on all."""

    signal: int  # that any rank had received at the last `ask`; 0 if none had
    is_saving: bool  # whether any rank was still saving a checkpoint then


class StopConsensus:
    """All ranks agree on whether a signal has arrived, once a step, in a thread during the last micro-batch. Collective.

    It never waits for the GPU. A signal that arrives before a rank's last micro-batch counts at the end of that step. Whether a
    checkpoint is still being written is agreed on with the same message.
    """

    def __init__(self, world: World, timeout: timedelta = timedelta(minutes=30)) -> None:
        self._own = Answer(0, False)
        self._pending: Future[Answer] | None = None
        self._requests: SimpleQueue[Future[Answer] | None] = SimpleQueue()
        self._is_alone = world.size == 1
        if self._is_alone:
            return
        self._group = ControlGroup("stop", world, timeout)
        # A daemon, unlike an executor's thread: the process must be able to exit while an answer never arrives.
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> StopConsensus:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return  # the thread may wait for an answer that never arrives
        if not self._is_alone:
            self._requests.put(None)
            self._thread.join()
            self._group.close()

    def ask(self, is_saving: bool = False) -> None:
        """Start to ask all ranks whether they have received a signal, and whether they are saving. Collective."""
        self._own = Answer(signals.received(), is_saving)
        if not self._is_alone:
            self._pending = Future()
            self._requests.put(self._pending)

    def answer(self) -> Answer:
        """The answer to the last `ask`."""
        if self._pending is not None:
            self._own = self._pending.result()
            self._pending = None
        return self._own

    def _serve(self) -> None:
        while (request := self._requests.get()) is not None:
            try:
                signal, is_saving = self._group.maximum([self._own.signal, int(self._own.is_saving)])
                request.set_result(Answer(signal, bool(is_saving)))
            except Exception as error:
                request.set_exception(error)
