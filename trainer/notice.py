"""Whether the run is to stop at the next step boundary: known to one rank first, agreed by all."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import Future
from datetime import timedelta
from queue import SimpleQueue

import torch
import torch.distributed as dist

from trainer import signals
from trainer.distributed import World


class Notice:
    """One question a step, under way in a thread of its own during the last micro-batch. Collective.

    It never waits for the GPU, and what a rank was told before its last micro-batch counts at the end of that step. The
    ranks of a machine agree first, then one of each machine with the others: in one gloo group of a thousand ranks each would
    hold a thousand connections.
    """

    def __init__(self, world: World, timeout: timedelta = timedelta(minutes=30)) -> None:
        self._flag = 0
        self._asked: Future[int] | None = None
        self._questions: SimpleQueue[Future[int] | None] = SimpleQueue()
        self._here: dist.ProcessGroup | None = None
        self._between: dist.ProcessGroup | None = None
        self._groups: list[dist.ProcessGroup] = []
        self._alone = world.size == 1
        if self._alone:
            return
        hosts: list[str] = [""] * world.size
        dist.all_gather_object(hosts, socket.gethostname())
        here = [rank for rank, host in enumerate(hosts) if host == hosts[world.rank]]
        first = [hosts.index(host) for host in dict.fromkeys(hosts)]
        self._leader = here[0]
        if len(here) > 1:
            self._here = self._group(here, timeout)
        if len(first) > 1 and world.rank == self._leader:
            self._between = self._group(first, timeout)
        # A daemon, which an executor's thread is not: the process must be able to end while an answer never comes.
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _group(self, ranks: list[int], timeout: timedelta) -> dist.ProcessGroup:
        # Each group is made by its own members alone.
        group = dist.new_group(ranks, timeout=timeout, backend="gloo", use_local_synchronization=True)
        self._groups.append(group)
        return group

    def __enter__(self) -> Notice:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return  # another rank may hang in an answer that never comes
        if not self._alone:
            self._questions.put(None)
            self._thread.join()
        for group in self._groups:
            dist.destroy_process_group(group)

    def ask(self) -> None:
        """Begin to ask all ranks. Collective."""
        self._flag = signals.received()
        if not self._alone:
            self._asked = Future()
            self._questions.put(self._asked)

    def answer(self) -> int:
        """The signal that any rank had received when it last asked, the same on all; 0 if none had."""
        if self._asked is not None:
            self._flag = self._asked.result()
            self._asked = None
        return self._flag

    def _serve(self) -> None:
        while (question := self._questions.get()) is not None:
            try:
                question.set_result(self._agree())
            except Exception as error:
                question.set_exception(error)

    def _agree(self) -> int:
        told = torch.tensor([self._flag], dtype=torch.int32)
        if self._here is not None:
            dist.all_reduce(told, dist.ReduceOp.MAX, self._here)
        if self._between is not None:
            dist.all_reduce(told, dist.ReduceOp.MAX, self._between)
        if self._here is not None:
            dist.broadcast(told, self._leader, self._here)
        return int(told)
