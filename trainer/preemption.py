"""Stop consensus: whether the run stops at the next step boundary, known to one rank first and agreed by all."""

from __future__ import annotations

import socket
import threading
import uuid
from concurrent.futures import Future
from datetime import timedelta
from queue import SimpleQueue
from typing import Any

import torch
import torch.distributed as dist

from bellwether.trainer import messages, signals, store
from bellwether.trainer.distributed import World, run_on_rank0


class StopConsensus:
    """All ranks agree on whether a signal has arrived, once a step, in a thread during the last micro-batch. Collective.

    It never waits for the GPU. A signal that arrives before a rank's last micro-batch counts at the end of that step. The ranks
    of a machine agree first, then one of each machine with the others: in a single gloo group of a thousand ranks, each rank
    would hold a thousand connections.
    """

    def __init__(self, world: World, timeout: timedelta = timedelta(minutes=30)) -> None:
        self._signal = 0
        self._pending: Future[int] | None = None
        self._requests: SimpleQueue[Future[int] | None] = SimpleQueue()
        # dist.ProcessGroupGloo, whose type hints lack its methods
        self._within_machine: Any = None
        self._between_machines: Any = None
        self._is_alone = world.size == 1
        if self._is_alone:
            return
        self._connect(world, timeout)
        # A daemon, unlike an executor's thread: the process must be able to exit while an answer never arrives.
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _connect(self, world: World, timeout: timedelta) -> None:
        """Create the process groups, not through new_group, where every rank would wait for every machine's group."""
        hosts = messages.all_gather_values(socket.gethostname(), world.device)
        here = [rank for rank, host in enumerate(hosts) if host == hosts[world.rank]]
        first_of_each = [hosts.index(host) for host in dict.fromkeys(hosts)]
        nonce = run_on_rank0(world, lambda: uuid.uuid4().hex)
        common = dist.PrefixStore(f"stop/{nonce}", store.of_run())
        if len(here) > 1:
            own_store = dist.PrefixStore(f"of/{here[0]}", common)
            self._within_machine = dist.ProcessGroupGloo(own_store, here.index(world.rank), len(here), timeout)
        if len(first_of_each) > 1 and world.rank == here[0]:
            between = dist.PrefixStore("between", common)
            self._between_machines = dist.ProcessGroupGloo(
                between, first_of_each.index(world.rank), len(first_of_each), timeout
            )

    def __enter__(self) -> StopConsensus:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return  # the thread may wait for an answer that never arrives
        if not self._is_alone:
            self._requests.put(None)
            self._thread.join()

    def ask(self) -> None:
        """Start to ask all ranks whether they have received a signal. Collective."""
        self._signal = signals.received()
        if not self._is_alone:
            self._pending = Future()
            self._requests.put(self._pending)

    def answer(self) -> int:
        """The number of the signal that any rank had received at the last `ask`, the same on all ranks; 0 if none had."""
        if self._pending is not None:
            self._signal = self._pending.result()
            self._pending = None
        return self._signal

    def _serve(self) -> None:
        while (request := self._requests.get()) is not None:
            try:
                request.set_result(self._agree())
            except Exception as error:
                request.set_exception(error)

    def _agree(self) -> int:
        signal = torch.tensor([self._signal], dtype=torch.int32)
        maximum: Any = dist.AllreduceOptions()
        maximum.reduceOp = dist.ReduceOp.MAX
        # Within the machine, between the machines, and the result of that to all ranks of the machine.
        for group in filter(None, (self._within_machine, self._between_machines, self._within_machine)):
            group.allreduce([signal], maximum).wait()
        return int(signal)
