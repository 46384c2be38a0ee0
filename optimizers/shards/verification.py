"""Verifies at attach that a layout inferred from an engine is true: its values, and that it covers every element once.

Values: a slice of the engine's flat tensor equals the model's own weights, up to the rounding of the narrower dtype.

Coverage: each slice [start, end) of a parameter adds h(end) - h(start) to a sum over all ranks, h being a pseudorandom
number for each position. The inner boundaries cancel, and the sum is h(numel) - h(0), exactly if each element is covered
once: the sum determines where coverage begins and ends, so a gap and an overlap cannot make up for one another. Costs two
hashes a slice, and one all-reduce of a table whose size does not depend on the model or the layout, because ranks that
disagree about the layout must still agree about the size of a collective.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from bellwether.optimizers.shards.layout import ParameterInfo, ParameterSlice, ShardLayout, local, sum_over_ranks

# The model's own elements of a slice of a parameter, 1-D; None where this rank does not have them.
Truth = Callable[[ParameterInfo, ParameterSlice], Tensor | None]

_ROWS = 1024  # of the table; parameters whose names have the same hash share a row
_CHUNK = 1 << 22  # elements compared at a time
_MASK = (1 << 40) - 1  # of a hash: sums over a million slices stay within int64


@dataclass
class _Table:
    """Sums over the parameters of each row: hash of the coverage, covered elements, wrong elements.

    The last column has the hash of the parameters and their order, which has to be the same on all ranks.
    """

    sums: Tensor  # int64 [3, _ROWS + 1]
    parameters: dict[str, ParameterInfo]
    order: int = 0

    @classmethod
    def empty(cls) -> _Table:
        return cls(torch.zeros(3, _ROWS + 1, dtype=torch.int64, device="cpu"), {})


def verify(
    shards: Iterable[ShardLayout],
    truth: Truth | None = None,
    *,
    engine: str,
    expected: Sequence[ParameterInfo] = (),
    spread_over: dist.ProcessGroup | None = None,
) -> None:
    """Check the layout of an engine. Collective: one all-reduce for each process group.

    Args:
        truth: the model's own weights; None: check coverage alone.
        engine: name and version, for the message.
        expected: parameters that have to be covered, in addition to those that the layout names.
        spread_over: ranks that hold different whole parameters, over which coverage is summed instead.

    Raises:
        RuntimeError: on all ranks of a process group, with the engine and the parameters.
    """
    tables: dict[dist.ProcessGroup | None, _Table] = {} if spread_over is None else {spread_over: _Table.empty()}
    for shard in shards:
        table = tables.setdefault(spread_over or shard.process_group, _Table.empty())
        _add(table, shard, truth)
        if spread_over is None:
            table.order = zlib.crc32(repr(shard.parameters).encode(), table.order)
    missing = [p for p in expected if not any(p.name in table.parameters for table in tables.values())]
    if missing:
        next(iter(tables.values()), _Table.empty()).parameters.update({p.name: p for p in missing})
    problems = []
    for process_group, table in tables.items():
        sums, table.sums[0, _ROWS] = table.sums, table.order
        ranks = 1
        if process_group is not None:
            (sums,) = sum_over_ranks([sums], process_group)
            ranks = dist.get_world_size(process_group)
        problems += _problems(sums, table, ranks)
    if problems:
        raise RuntimeError(_message(engine, problems))


def _message(engine: str, problems: list[str]) -> str:
    shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
    return (
        f"attach: the layout read from {engine} is not that of the model, and training on would corrupt it: {shown}. "
        "If the model's weights were changed after the engine was created, load them before; otherwise use a version of the "
        "engine that Bellwether supports, and report this one"
    )


def _add(table: _Table, shard: ShardLayout, truth: Truth | None) -> None:
    flat = local(shard.tensor.detach())
    wrong = _clashes(shard, flat.numel())
    for p in shard.parameters:
        table.parameters[p.name] = p
    if not shard.is_counted:
        return
    for part in shard.slices:
        p = shard.parameters[part.index]
        row, end = _row(p.name), part.start + part.length
        table.sums[0, row] += _hash(p.name, end) - _hash(p.name, part.start)
        table.sums[1, row] += part.length
        if part in wrong:
            table.sums[2, row] += part.length
        elif truth is not None:
            own = truth(p, part)
            if own is not None:
                table.sums[2, row] += _differences(flat.reshape(-1).narrow(0, part.offset, part.length), own)


def _clashes(shard: ShardLayout, numel: int) -> set[ParameterSlice]:
    """Slices that lie outside of the flat tensor or overlap with the one before, or outside of their parameter."""
    found, end = set(), 0
    for part in sorted(shard.slices, key=lambda s: s.offset):
        outside = part.start < 0 or part.start + part.length > shard.parameters[part.index].numel
        if part.offset < end or part.offset + part.length > numel or part.length < 0 or outside:
            found.add(part)
        end = max(end, part.offset + part.length)
    return found


def _differences(slice_: Tensor, own: Tensor) -> int:
    """The number of elements that are not equal up to rounding."""
    if own.numel() != slice_.numel():
        return max(slice_.numel(), 1)
    if own.data_ptr() == slice_.data_ptr() and own.dtype == slice_.dtype:
        return 0
    narrow = max((slice_.dtype, own.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    info, count = torch.finfo(narrow), 0
    for ours, theirs in zip(slice_.split(_CHUNK), own.reshape(-1).split(_CHUNK), strict=True):
        theirs = theirs.to(ours.device)
        if torch.equal(ours.to(narrow), theirs.to(narrow)):  # as engines round; one pass over memory
            continue
        wide = theirs.float()
        close = torch.isclose(ours.float(), wide, rtol=info.eps, atol=info.tiny, equal_nan=True)
        # Values beyond the range of fp16 are infinite in the model, and finite in the masters.
        count += int((~(close | (wide.isinf() & (ours.abs() >= info.max)))).sum())
    return count


def _problems(sums: Tensor, table: _Table, ranks: int) -> list[str]:
    wanted = torch.zeros_like(sums)
    rows: dict[int, list[str]] = {}
    for name, p in table.parameters.items():
        row = _row(name)
        wanted[0, row] += _hash(name, p.numel) - _hash(name, 0)
        wanted[1, row] += p.numel
        rows.setdefault(row, []).append(name)
    problems = []
    for row in (sums != wanted)[:, :_ROWS].any(0).nonzero().flatten().tolist():
        names = " or ".join(rows.get(row, ["a parameter that another rank has"]))
        covered, numel, wrong = int(sums[1, row]), int(wanted[1, row]), int(sums[2, row])
        if wrong:
            problems.append(f"{wrong} of {numel} elements of {names} are not the model's weights")
        elif covered != numel:
            problems.append(f"{covered} of {numel} elements of {names} are on the ranks")
        else:
            problems.append(f"some elements of {names} are on no rank, and others on several")
    if not problems and int(sums[0, _ROWS]) != ranks * table.order:
        problems.append("the ranks list different parameters, or in a different order")
    return problems


def _row(name: str) -> int:
    return zlib.crc32(name.encode()) % _ROWS


def _hash(name: str, position: int) -> int:
    """A pseudorandom number of 40 bits (splitmix64)."""
    x = (zlib.crc32(name.encode(), 1) << 32) ^ position
    x = (x + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (x ^ (x >> 31)) & _MASK
