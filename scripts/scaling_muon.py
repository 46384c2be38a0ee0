"""Muon on a very large run: which rank computes which matrices, and how many bytes travel, from the shards of all ranks."""

from __future__ import annotations

import time
from typing import Any

from torch import nn

from bellwether.optimizers import Muon, groups
from bellwether.optimizers.shards.exchange import Piece, assign_owners, holders_of, local_pieces
from scripts.scaling_all_ranks import layouts_of
from scripts.scaling_one_rank import as_rank

_BYTES = 2  # of an element that travels: bf16


def muon_loads(model: nn.Module, engine: str, world: int) -> dict[str, Any]:
    """The owners of all matrices, their loads, and what the busiest rank sends in an update."""
    as_rank(0, world)
    optimizer = Muon(groups(model, muon=True))
    matrices = {name for group in optimizer.param_groups if group["muon"] for name in group["param_names"]}
    layouts = layouts_of(model, engine, world, optimizer)
    mine = [[shard for shard in shards if shard.parameters[0].name in matrices] for shards in layouts]
    pieces = [[piece for piece, _ in local_pieces(shards)] for shards in mine]
    parameters = {(i, j): p for i, shard in enumerate(mine[0]) for j, p in enumerate(shard.parameters)}
    costs = {key: optimizer.whole_cost(parameter.shape) for key, parameter in parameters.items()}
    started = time.perf_counter()
    owners = assign_owners(costs, holders_of(pieces), world)
    seconds = time.perf_counter() - started
    _check_tiles(pieces, {key: parameter.numel for key, parameter in parameters.items()})
    loads, sent = [0.0] * world, [0] * world
    for key, owner in owners.items():
        loads[owner] += costs[key]
        sent[owner] += parameters[key].numel  # back to all ranks that hold some of it
    for rank, of_rank in enumerate(pieces):
        for piece in of_rank:
            own = owners[piece.key] == rank
            sent[rank] += -piece.length if own else piece.length
    return {
        "matrices": len(parameters),
        "numel": sum(parameter.numel for parameter in parameters.values()),
        "owners": len(set(owners.values())),
        "largest": max(loads) / sum(loads),
        "bound": max(max(costs.values()) / sum(loads), 1 / world),
        "stay": sum(p.length for rank, of_rank in enumerate(pieces) for p in of_rank if owners[p.key] == rank),
        "sent": _BYTES * max(sent),
        "positions": 8 * sum(6 for of_rank in pieces for _ in of_rank),
        "seconds": seconds,
    }


def _check_tiles(pieces: list[list[Piece]], numels: dict[tuple[int, int], int]) -> None:
    """What an owner gets is each element once."""
    runs: dict[tuple[int, int], list[tuple[int, int]]] = {key: [] for key in numels}
    for of_rank in pieces:
        for piece in of_rank:
            assert piece.is_counted
            assert piece.box is None
            runs[piece.key].append((piece.start, piece.length))
    for key, found in runs.items():
        end = 0
        for start, length in sorted(found):
            assert start == end, f"{key}: an owner would not get element {end} once"
            end += length
        assert end == numels[key]
