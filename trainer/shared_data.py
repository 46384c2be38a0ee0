"""One process a machine locates and prepares the data, and asks the hub for them. The other processes get the paths."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from bellwether.trainer import data, messages, store
from bellwether.trainer.config import Config
from bellwether.trainer.distributed import World, run_on_all_ranks

_LONGEST = timedelta(days=7)  # for a preparation; longer than any collective waits

Facts = list[dict[str, Any]]


def load_once_a_machine(configs: Sequence[Config], world: World) -> list[data.Dataset]:
    """The dataset of each config; only rank 0 and other leaders of machines have its summary. Collective.

    Raises:
        ConfigError: on all ranks, if the data cannot be read on a machine, or are refused.
    """
    host = socket.gethostname()
    leads = world.local_rank == 0
    hosts = {name for name, led in messages.all_gather_values([host, leads], world.device) if led}
    leads = leads or host not in hosts  # a launcher without local ranks
    own: Facts | None = None
    error: Exception | None = None
    if leads:
        try:
            own = [data.prepare(config.data) for config in configs]
        except Exception as failure:
            error = failure
        if world.size > 1:
            store.of_run().set(f"data/{host}", "")
    elif world.size > 1:
        store.of_run().wait([f"data/{host}"], _LONGEST)

    def tell() -> list[Any]:
        if error is not None:
            raise error
        # The summary is for rank 0 to show, and may be long.
        return [host, own and [{key: fact for key, fact in each.items() if key != "summary"} for each in own]]

    told = {name: facts for name, facts in run_on_all_ranks(world, tell) if facts is not None}
    facts = own if own is not None else told[host]
    datasets: list[data.Dataset] = []
    run_on_all_ranks(
        world,
        lambda: datasets.extend(config.data.open(each) for config, each in zip(configs, facts, strict=True)),
    )
    return datasets
