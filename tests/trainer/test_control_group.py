"""Connections beside the training: of the ranks of each machine, and of one rank of each machine with the others."""

from __future__ import annotations

import socket
import threading
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from tests.ranks import Ranks


def _agree(hosts: list[str]) -> tuple[list[Any], list[int], str, bool]:
    """What a rank learns, in a thread while the main thread's collectives go on; where rank r is on host hosts[r]."""
    from bellwether.trainer.control_group import ControlGroup
    from bellwether.trainer.distributed import World

    world = World(dist.get_rank(), dist.get_world_size(), 0, torch.device("cpu"))
    with mock.patch.object(socket, "gethostname", return_value=hosts[world.rank]):
        group = ControlGroup("test", world)

    def fail() -> None:
        if world.rank % 2:
            raise OSError(28, "full", f"rank {world.rank}")

    def act() -> None:
        found.append(group.run_on_all_ranks(lambda: (world.rank, "\u00e9" * world.rank)))
        found.append(group.maximum([world.rank, -world.rank]))
        try:
            group.run_on_all_ranks(fail)
        except OSError as error:
            found.append(str(error))
            found.append(error.raised_by_all_ranks)  # type: ignore[attr-defined]

    found: list[Any] = []
    thread = threading.Thread(target=act)
    thread.start()
    for _ in range(20):
        dist.all_reduce(torch.ones(1000))
    thread.join()
    group.close()
    return tuple(found)  # type: ignore[return-value]


@pytest.mark.parametrize("ranks", [4], indirect=True)
@pytest.mark.parametrize("hosts", [["a", "a", "a", "a"], ["a", "b", "a", "b"], ["a", "b", "b", "c"]], ids="".join)
def test_all_ranks_learn_the_same(ranks: Ranks, hosts: list[str]) -> None:
    everything = [(rank, "\u00e9" * rank) for rank in range(4)]
    assert ranks.run(_agree, hosts) == [(everything, [3, 0], "[Errno 28] full: 'rank 1'", True)] * 4
