"""Whether the run is to stop at the next step boundary: known to one rank first, agreed by all."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from concurrent.futures import Future
from datetime import timedelta
from queue import SimpleQueue
from typing import Any

import torch
import torch.distributed as dist

from bellwether.trainer import signals
from bellwether.trainer.distributed import World, run_on_rank0


class StopConsensus:
    """One question a step, under way in a thread of its own during the last micro-batch. Collective.

    It never waits for the GPU, and what a rank was told before its last micro-batch counts at the end of that step. The
    ranks of a machine agree first, then one of each machine with the others: in one gloo group of a thousand ranks each would
    hold a thousand connections.
    """

    def __init__(self, world: World, timeout: timedelta = timedelta(minutes=30)) -> None:
        self._flag = 0
        self._asked: Future[int] | None = None
        self._questions: SimpleQueue[Future[int] | None] = SimpleQueue()
        # dist.ProcessGroupGloo, whose type hints lack its methods
        self._here: Any = None
        self._between: Any = None
        self._alone = world.size == 1
        if self._alone:
            return
        hosts: list[str] = [""] * world.size
        dist.all_gather_object(hosts, socket.gethostname())
        here = [rank for rank, host in enumerate(hosts) if host == hosts[world.rank]]
        first = [hosts.index(host) for host in dict.fromkeys(hosts)]
        # Not through new_group: every rank would have to wait for the making of every machine's group.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        server = dist.TCPStore(address, port, is_master=False, wait_for_workers=False)
        store = dist.PrefixStore(f"notice/{run_on_rank0(world, lambda: uuid.uuid4().hex)}", server)
        if len(here) > 1:
            own = dist.PrefixStore(f"of/{here[0]}", store)
            self._here = dist.ProcessGroupGloo(own, here.index(world.rank), len(here), timeout)
        if len(first) > 1 and world.rank == here[0]:
            among = dist.PrefixStore("between", store)
            self._between = dist.ProcessGroupGloo(among, first.index(world.rank), len(first), timeout)
        # A daemon, which an executor's thread is not: the process must be able to end while an answer never comes.
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> StopConsensus:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return  # another rank may hang in an answer that never comes
        if not self._alone:
            self._questions.put(None)
            self._thread.join()

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
        highest: Any = dist.AllreduceOptions()
        highest.reduceOp = dist.ReduceOp.MAX
        # Within the machine, between the machines, and what came of that to all of the machine.
        for group in filter(None, (self._here, self._between, self._here)):
            group.allreduce([told], highest).wait()
        return int(told)
