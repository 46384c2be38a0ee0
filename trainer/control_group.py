"""What ranks agree on beside their training: a thread's own gloo connections, which no collective of the main thread waits for."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from bellwether.trainer import messages, store
from bellwether.trainer.distributed import World, agree, run_on_rank0

T = TypeVar("T")


class ControlGroup:
    """Connections of the ranks of each machine, and of one rank of each machine with the others. Collective.

    In a single gloo group of a thousand ranks, each rank would hold a thousand connections. One thread at a time may use it, which may
    be another one than that of the training.

    Args:
        name: of the group, the same on all ranks.
        timeout: of one collective.
    """

    def __init__(self, name: str, world: World, timeout: timedelta = timedelta(minutes=30)) -> None:
        self.world = world
        # dist.ProcessGroupGloo, whose type hints lack its methods
        self._within_machine: Any = None
        self._between_machines: Any = None
        if world.size > 1:
            self._connect(name, timeout)

    def _connect(self, name: str, timeout: timedelta) -> None:
        """Create the process groups, not through new_group, where every rank would wait for every machine's group."""
        rank = self.world.rank
        hosts = messages.all_gather_values(socket.gethostname(), self.world.device)
        here = [other for other, host in enumerate(hosts) if host == hosts[rank]]
        first_of_each = [hosts.index(host) for host in dict.fromkeys(hosts)]
        nonce = run_on_rank0(self.world, lambda: uuid.uuid4().hex)
        common = dist.PrefixStore(f"{name}/{nonce}", store.of_run())
        if len(here) > 1:
            own_store = dist.PrefixStore(f"of/{here[0]}", common)
            self._within_machine = dist.ProcessGroupGloo(own_store, here.index(rank), len(here), timeout)
        if len(first_of_each) > 1 and rank == here[0]:
            between = dist.PrefixStore("between", common)
            self._between_machines = dist.ProcessGroupGloo(
                between, first_of_each.index(rank), len(first_of_each), timeout
            )

    def close(self) -> None:
        """Close the connections. To be called by all ranks before any of them exits."""
        self._within_machine = self._between_machines = None

    def _groups(self) -> list[Any]:
        """Within the machine, between the machines, and then to all ranks of the machine."""
        return list(filter(None, (self._within_machine, self._between_machines, self._within_machine)))

    def maximum(self, values: Sequence[int]) -> list[int]:
        """The largest of each value over all ranks. Collective."""
        tensor = torch.tensor(values, dtype=torch.int32)
        options: Any = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MAX
        for group in self._groups():
            group.allreduce([tensor], options).wait()
        return [int(value) for value in tensor]

    def all_gather(self, data: bytes) -> list[bytes]:
        """The bytes of all ranks, in order. Collective.

        Args:
            data: a message of `bellwether.trainer.messages`.
        """
        known = {str(self.world.rank): data.decode()}
        for group in self._groups():
            merged: dict[str, str] = {}
            for part in _gathered(group, messages.encode(known)):
                merged |= messages.decode(part)
            known = merged
        return [known[str(rank)].encode() for rank in range(self.world.size)]

    def run_on_all_ranks(self, act: Callable[[], T]) -> list[T]:
        """`bellwether.trainer.distributed.run_on_all_ranks`, over this group. Collective."""
        return agree(act, self.world.rank, self.all_gather)


def _gathered(group: Any, data: bytes) -> list[bytes]:
    """The bytes of all ranks of a process group, in its order."""
    sizes = [torch.empty(1, dtype=torch.int64) for _ in range(group.size())]
    group.allgather([sizes], [torch.tensor([len(data)])]).wait()
    lengths = [int(size) for size in sizes]
    rows = [torch.empty(max(lengths), dtype=torch.uint8) for _ in lengths]
    own = torch.frombuffer(bytearray(data.ljust(max(lengths))), dtype=torch.uint8)
    group.allgather([rows], [own]).wait()
    return [row[:length].numpy().tobytes() for row, length in zip(rows, lengths, strict=True)]
