"""Brings whole parameters to one owner each, and what it computes of them back to the ranks that hold the slices.

A norm is a sum over slices; a function of a whole matrix, as in Muon, is not. The owners are balanced by cost. A step takes two
all-to-alls for each chunk of the parameters, a constant number; the next chunk travels while one is computed.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from bellwether.optimizers.shards.layout import Box, ParameterInfo, ShardLayout, communication_device

Key = tuple[int, int]  # index of the shard, and of the parameter in it; the same on all ranks
Function = Callable[[Tensor, Key], Tensor]  # of a flattened parameter; returns a tensor of the same shape and dtype
Cost = Callable[[ParameterInfo], float]

_CHUNKS = 4  # at most
_CHUNK_NUMEL = 1 << 20  # elements a rank at least: smaller chunks are not worth a collective
_LOCALITY = 1.05  # of the mean load: up to this a parameter stays with the rank that holds most of it


class Piece(NamedTuple):
    """Elements of a parameter that one rank holds: consecutive ones, or a box."""

    key: Key
    start: int  # first element in the flattened parameter
    length: int
    is_counted: bool  # whether the owner takes it from this rank: of several replicas from one
    box: Box | None = None


@dataclass(frozen=True)
class _Side:
    """Pieces in the order of a buffer, and how many elements go to or come from each rank."""

    pieces: list[Piece]
    sizes: list[int]

    @classmethod
    def of(cls, by_rank: Iterable[Iterable[Piece]], keys: set[Key], *, counted: bool) -> _Side:
        chosen = [[p for p in pieces if p.key in keys and (p.is_counted or not counted)] for pieces in by_rank]
        return cls([p for pieces in chosen for p in pieces], [sum(p.length for p in pieces) for pieces in chosen])

    @property
    def lengths(self) -> list[int]:
        return [piece.length for piece in self.pieces]


@dataclass(frozen=True)
class _Chunk:
    """Parameters that travel together: what this rank sends to owners and gets as one, and the same on the way back."""

    sent: _Side
    arriving: _Side
    returned: _Side
    back: _Side


class Exchange:
    """Who owns which parameter of a list of shards, and what travels where.

    Args:
        shards: of one process group; each rank passes the same parameters.
        cost: of computing the function of a parameter, in any unit.

    Collective: two all-gathers, of the positions of all slices.
    """

    def __init__(self, shards: Sequence[ShardLayout], cost: Cost) -> None:
        group = shards[0].process_group
        assert group is not None
        self._group, rank = group, dist.get_rank(group)
        self.parameters = {(i, j): p for i, shard in enumerate(shards) for j, p in enumerate(shard.parameters)}
        mine = local_pieces(shards)
        self._offsets = {(piece.key, piece.start): offset for piece, offset in mine}
        pieces = _all_gather([piece for piece, _ in mine], self.parameters, group)
        costs = {key: cost(parameter) for key, parameter in self.parameters.items()}
        self.owners = assign_owners(costs, holders_of(pieces), len(pieces))
        to_owner: list[list[Piece]] = [[] for _ in pieces]
        for piece in pieces[rank]:
            to_owner[self.owners[piece.key]].append(piece)
        from_rank = [[piece for piece in held if self.owners[piece.key] == rank] for held in pieces]
        numel = sum(parameter.numel for parameter in self.parameters.values())
        self._chunks = [
            _Chunk(
                _Side.of(to_owner, keys, counted=True), _Side.of(from_rank, keys, counted=True),
                _Side.of(from_rank, keys, counted=False), _Side.of(to_owner, keys, counted=False),
            )
            for keys in in_chunks(self.owners, costs, chunk_count(numel, len(pieces)))
        ]  # fmt: skip

    def run(self, tensors: Sequence[Tensor], function: Function) -> None:
        """Apply a function to whole parameters, in place. Collective.

        Args:
            tensors: this rank's part of each shard, flat; all of one dtype and device. Padding stays as it is.
            function: called once for each parameter in the whole process group, on its owner.
        """
        coming: _Transfer | None = self._send(self._chunks[0], tensors)
        going: list[_Transfer] = []
        for chunk, following in zip(self._chunks, [*self._chunks[1:], None], strict=True):
            assert coming is not None
            whole = _assemble(coming.wait(), chunk.arriving, self.parameters)
            # The next travels while this chunk is computed. What has arrived is freed.
            coming = None if following is None else self._send(following, tensors)
            going.append(self._return(chunk, whole, function, tensors[0]))
            if len(going) > 1:
                self._receive(going.pop(0), tensors)
        self._receive(going.pop(), tensors)

    def _return(self, chunk: _Chunk, whole: dict[Key, Tensor], function: Function, like: Tensor) -> _Transfer:
        done = {key: function(whole.pop(key), key) for key in list(whole)}
        outgoing = [_part(done[piece.key], piece) for piece in chunk.returned.pieces]
        return self._all_to_all(outgoing, like, chunk.returned, chunk.back)

    def _send(self, chunk: _Chunk, tensors: Sequence[Tensor]) -> _Transfer:
        outgoing = [self._slot(tensors, piece) for piece in chunk.sent.pieces]
        return self._all_to_all(outgoing, tensors[0], chunk.sent, chunk.arriving)

    def _receive(self, transfer: _Transfer, tensors: Sequence[Tensor]) -> None:
        pieces = transfer.received.pieces
        parts = transfer.wait().to(tensors[0].device).split(transfer.received.lengths)
        if pieces:
            torch._foreach_copy_([self._slot(tensors, piece) for piece in pieces], list(parts))

    def _slot(self, tensors: Sequence[Tensor], piece: Piece) -> Tensor:
        return tensors[piece.key[0]].narrow(0, self._offsets[piece.key, piece.start], piece.length)

    def _all_to_all(self, outgoing: list[Tensor], like: Tensor, sent: _Side, received: _Side) -> _Transfer:
        device = communication_device(self._group, like.device)
        packed = (torch.cat(outgoing) if outgoing else like.new_empty(0)).to(device)
        buffer = packed.new_empty(sum(received.sizes))
        work = dist.all_to_all_single(buffer, packed, received.sizes, sent.sizes, group=self._group, async_op=True)
        return _Transfer(buffer, packed, work, received)


class _Transfer(NamedTuple):
    buffer: Tensor
    packed: Tensor  # kept until it has been sent
    work: dist.Work | None
    received: _Side

    def wait(self) -> Tensor:
        if self.work is not None:
            self.work.wait()
        return self.buffer


def assign_owners(costs: Mapping[Key, float], holders: Mapping[Key, int], ranks: int) -> dict[Key, int]:
    """One rank for each parameter, so that the largest load is small and few parameters travel. Deterministic.

    Args:
        costs: of each parameter, in any unit.
        holders: the rank that holds most of it, if any does.
    """
    loads, owners = [0.0] * ranks, {}
    target = _LOCALITY * sum(costs.values()) / ranks
    heap = [(0.0, rank) for rank in range(ranks)]
    for key in sorted(costs, key=lambda key: (-costs[key], key)):
        holder = holders.get(key)
        if holder is not None and loads[holder] + costs[key] <= target:
            owner = holder
        else:
            while heap[0][0] != loads[heap[0][1]]:  # the load of a holder has grown
                heapq.heapreplace(heap, (loads[heap[0][1]], heap[0][1]))
            owner = heap[0][1]
        loads[owner] += costs[key]
        owners[key] = owner
    return owners


def holders_of(pieces: Sequence[Sequence[Piece]]) -> dict[Key, int]:
    """The rank that holds most of each parameter: more than half, or nothing would be gained by its staying there."""
    held: dict[Key, Counter[int]] = defaultdict(Counter)
    for rank, of_rank in enumerate(pieces):
        for piece in of_rank:
            if piece.is_counted:
                held[piece.key][rank] += piece.length
    found = {key: counter.most_common(1)[0] for key, counter in held.items()}
    return {key: rank for key, (rank, length) in found.items() if 2 * length > held[key].total()}


def chunk_count(numel: int, ranks: int) -> int:
    """In how many chunks parameters of so many elements travel."""
    return min(_CHUNKS, max(1, math.ceil(numel / ranks / _CHUNK_NUMEL)))


def in_chunks(owners: Mapping[Key, int], costs: Mapping[Key, float], count: int) -> list[set[Key]]:
    """Parameters in chunks, of which each owner has some in each."""
    by_owner: dict[int, list[Key]] = defaultdict(list)
    for key in sorted(owners, key=lambda key: (-costs[key], key)):
        by_owner[owners[key]].append(key)
    chunks: list[set[Key]] = [set() for _ in range(count)]
    for keys in by_owner.values():
        for i, key in enumerate(keys):
            chunks[i % count].add(key)
    return [chunk for chunk in chunks if chunk]


def local_pieces(shards: Sequence[ShardLayout]) -> list[tuple[Piece, int]]:
    """What this rank holds, each with its first element in the flat tensor."""
    found = []
    for i, shard in enumerate(shards):
        if isinstance(shard.slices, Box) and len(shard.slices) > 1:
            box = shard.slices
            found.append((Piece((i, 0), box[0].start, len(box) * box.length, shard.is_counted, box), 0))
            continue
        for part in shard.slices:
            found.append((Piece((i, part.index), part.start, part.length, shard.is_counted), part.offset))
    return found


def _all_gather(
    mine: list[Piece], parameters: Mapping[Key, ParameterInfo], group: dist.ProcessGroup
) -> list[list[Piece]]:
    """The pieces of each rank, in the order that it holds them."""
    rows = [
        value
        for p in mine
        for value in (
            *p.key,
            p.start,
            p.length,
            p.is_counted,
            p.box is not None,
            *(((*p.box.corner, *p.box.size)) if p.box else ()),
        )
    ]
    device = communication_device(group, torch.device("cpu"))
    own = torch.tensor(rows, dtype=torch.int64, device=device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([len(rows)], dtype=torch.int64, device=device), group=group)
    longest = max(int(size) for size in sizes)
    tables = [own.new_zeros(longest) for _ in sizes]
    dist.all_gather(tables, torch.cat([own, own.new_zeros(longest - len(rows))]), group=group)
    return [_parse(table[: int(size)].tolist(), parameters) for table, size in zip(tables, sizes, strict=True)]


def _parse(values: list[int], parameters: Mapping[Key, ParameterInfo]) -> list[Piece]:
    pieces, i = [], 0
    while i < len(values):
        shard, parameter, start, length, is_counted, is_box = values[i : i + 6]
        i, key, box = i + 6, (shard, parameter), None
        if is_box:
            shape = parameters[key].shape
            middle, end = i + len(shape), i + 2 * len(shape)
            box, i = Box(shape, tuple(values[i:middle]), tuple(values[middle:end])), end
        pieces.append(Piece(key, start, length, bool(is_counted), box))
    return pieces


def _assemble(buffer: Tensor, side: _Side, parameters: Mapping[Key, ParameterInfo]) -> dict[Key, Tensor]:
    """Whole parameters, flattened, from what the ranks have sent."""
    by_key: dict[Key, list[tuple[Piece, Tensor]]] = defaultdict(list)
    for piece, part in zip(side.pieces, buffer.split(side.lengths), strict=True):
        by_key[piece.key].append((piece, part))
    whole = {}
    for key, parts in by_key.items():
        if all(piece.box is None for piece, _ in parts):
            whole[key] = torch.cat([part for _, part in sorted(parts, key=lambda pair: pair[0].start)])
            continue
        whole[key] = buffer.new_empty(parameters[key].numel)
        for piece, part in parts:
            slot = _part_view(whole[key], piece)
            slot.copy_(part.view_as(slot))
    return whole


def _part_view(whole: Tensor, piece: Piece) -> Tensor:
    """The view of a flattened parameter that a piece is."""
    if piece.box is None:
        return whole.narrow(0, piece.start, piece.length)
    view = whole.view(piece.box.shape)
    for dimension, (corner, size) in enumerate(zip(piece.box.corner, piece.box.size, strict=True)):
        view = view.narrow(dimension, corner, size)
    return view


def _part(whole: Tensor, piece: Piece) -> Tensor:
    return _part_view(whole, piece).reshape(-1)
