"""16-bit weights without fp32 masters: stochastic rounding and Kahan summation, so that small updates are not lost.

bf16 has 8 bits of precision: an update below 1/512 of a weight rounds to nothing, at every step. With either option the
update is computed in fp32 on a copy of the weights, and only its result is rounded:

- stochastic rounding: up or down with probabilities that make it right on average (Gupta et al. 2015, 1502.02551). The
  random number of an element is a hash of (seed, step, name of the parameter, index in the whole parameter), so the result
  does not depend on the number of ranks or the engine.
- Kahan summation: what the rounding cut off is kept in a second 16-bit tensor, ``kahan_comp``, and added in the next step.
"""

from __future__ import annotations

import functools
import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from bellwether.optimizers.kernels.interface import Kernel
from bellwether.optimizers.kernels.tensor_list import TensorList
from bellwether.optimizers.kernels.wide_weights import WideWeights
from bellwether.optimizers.shards.layout import Box, ShardLayout, local

SIXTEEN_BITS = frozenset({torch.bfloat16, torch.float16})
COMPENSATION = "kahan_comp"

_log = logging.getLogger(__name__)
_ALIGN = 16  # elements between which the fp32 copies begin, for vectors
_M32 = 0xFFFFFFFF
_SMALLEST_NORMAL, _SUBNORMAL_STEP = 2.0**-14, 2.0**-24  # of fp16


@functools.cache
def warn_once(name: str, dtype: torch.dtype) -> None:
    """Say that updates of 16-bit weights get lost. Once, on rank 0."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_rank()):
        _log.warning(
            "%s trains %s weights without fp32 masters: updates that are much smaller than a weight round to nothing; write "
            "stochastic_rounding=True or kahan_sum=True, or keep the weights in float32",
            name, str(dtype).removeprefix("torch."),
        )  # fmt: skip


def widened(
    kernel: Kernel, tensors: TensorList, shards: Sequence[ShardLayout], kept: list[Tensor] | None
) -> tuple[TensorList, WideWeights]:
    """The same list with fp32 copies of 16-bit weights, and of gradients where the kernel does not convert them.

    Args:
        kept: what Kahan summation has kept; None with stochastic rounding.
    """
    grads = tensors.grads
    converts = _converts(kernel, tensors.weights, kept)
    if converts:
        numels = [w.numel() for w in tensors.weights]
        flat = torch.empty(sum(-(-n // _ALIGN) * _ALIGN for n in numels), dtype=torch.float32, device=tensors.device)
        offsets = accumulate((-(-n // _ALIGN) * _ALIGN for n in numels), initial=0)
        wide = [flat[o : o + n].view(w.shape) for o, n, w in zip(offsets, numels, tensors.weights, strict=False)]
    else:
        wide = [w.to(torch.float32, copy=True) for w in tensors.weights]
        grads = [g.float() for g in grads]
    weights = WideWeights(wide, tensors.weights, kept, shards, tensors.cache)
    if converts:
        assert kernel.convert is not None
        kernel.convert("widen", weights, None)
    elif kept is not None:
        for w, c in zip(wide, kept, strict=True):
            w.add_(c)
    return replace(tensors, weights=wide, grads=grads), weights


def round_back(kernel: Kernel, weights: WideWeights, seed: int, step: int) -> None:
    """Round the fp32 result of an update to the 16-bit weights, in the way that ``weights`` were widened for."""
    if _converts(kernel, weights.narrow, weights.kept):
        assert kernel.convert is not None
        if weights.kept is not None:
            kernel.convert("kahan", weights, None)
        else:
            kernel.convert("stochastic", weights, keys(weights.names, seed, step))
        return
    kept: Sequence[Tensor | None] = weights.kept or [None] * len(weights.wide)
    for shard, wide, narrow, compensation in zip(weights.shards, weights.wide, weights.narrow, kept, strict=True):
        if compensation is not None:
            narrow.copy_(wide)
            compensation.copy_(wide.sub_(narrow))
        else:
            narrow.copy_(round_stochastically(wide.reshape(-1), shard, seed, step, narrow.dtype).view(narrow.shape))


def _converts(kernel: Kernel, narrow: list[Tensor], kept: list[Tensor] | None) -> bool:
    """Whether the kernel converts these weights: if the order of memory is that of the elements."""
    columns = [narrow] if kept is None else [narrow, kept]
    is_plain = all(all(map(Tensor.is_contiguous, column)) for column in columns)
    return kernel.convert is not None and is_plain and len({t.dtype for column in columns for t in column}) == 1


def positions(shard: ShardLayout) -> Iterator[tuple[int, int, str, Tensor]]:
    """(offset, length, name of the parameter, indices in it) of each run of elements. Indices are int64 [length]."""
    device = local(shard.tensor).device
    if isinstance(shard.slices, Box):
        box, index = shard.slices, torch.zeros((), dtype=torch.int64, device=device)
        for corner, size, width in zip(box.corner, box.size, box.shape, strict=True):
            index = index[..., None] * width + torch.arange(corner, corner + size, device=device)
        if index.numel():
            yield 0, index.numel(), shard.parameters[0].name, index.reshape(-1)
        return
    for part in shard.slices:
        index = torch.arange(part.start, part.start + part.length, device=device)
        yield part.offset, part.length, shard.parameters[part.index].name, index


def round_stochastically(wide: Tensor, shard: ShardLayout, seed: int, step: int, dtype: torch.dtype) -> Tensor:
    """fp32 [numel] rounded to a 16-bit dtype, up or down at random. Padding is rounded to nearest."""
    rounded = wide.to(dtype)
    for offset, length, name, index in positions(shard):
        random = _random_bits(index, int(keys([name], seed, step)))
        rounded[offset : offset + length] = _round(wide[offset : offset + length], random, dtype)
    return rounded


def keys(names: Sequence[str], seed: int, step: int) -> Tensor:
    """32 bits for each parameter and step, as int64 [names] on the CPU."""
    hashes = torch.tensor([zlib.crc32(name.encode()) for name in names], dtype=torch.int64, device="cpu")
    return _mix((_mix((_mix(hashes ^ (seed & _M32)) + step) & _M32) + (step >> 32)) & _M32)


def _round(wide: Tensor, random: Tensor, dtype: torch.dtype) -> Tensor:
    dropped = 16 if dtype == torch.bfloat16 else 13  # bits of fp32's mantissa that the dtype lacks
    mask = (1 << dropped) - 1
    # Magnitude bits of a float are ordered as its absolute value, so adding and cutting off rounds away from 0 or towards it.
    bits = (wide.view(torch.int32) + (random & mask).to(torch.int32)) & ~mask
    result = bits.view(torch.float32)
    if dtype == torch.float16:
        uniform = (random & 0xFFFF).to(torch.float32) / 65536
        small = torch.floor(wide / _SUBNORMAL_STEP + uniform) * _SUBNORMAL_STEP
        result = torch.where(wide.abs() < _SMALLEST_NORMAL, small, result)
    return torch.where(wide.isfinite(), result, wide).to(dtype)


def _random_bits(index: Tensor, key: int) -> Tensor:
    """32 pseudorandom bits for each index, as int64: murmur3's finalizer, twice, of the index's halves and the key."""
    h = _mix((index & _M32) ^ key)
    return _mix(h ^ ((index >> 32) & _M32) ^ 0x9E3779B9)


def _mix(h: Tensor) -> Tensor:
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & _M32
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & _M32
    return h ^ (h >> 16)
