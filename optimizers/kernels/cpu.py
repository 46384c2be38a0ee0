"""The CPU kernel: one pass over memory in C++, on as many threads as torch has."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from optimizers.kernels import build
from optimizers.kernels.batch import Batch, Coefficients, Layout

_FORMULAS = {"adam": 0, "amsgrad": 1, "momentum": 2, "nesterov": 3, "plain": 4}
_GRADIENT_NORMS, _ADVANCE, _DESCEND, _STEP = range(4)
_CHUNK = 1 << 14  # elements
_COLUMNS = 5  # weights, gradients, and up to three moments


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernel.

    Raises:
        RuntimeError: if it cannot be compiled here.
    """
    found = build.load(Path(__file__).with_name("cpu.cpp"))
    integer, pointer = ctypes.c_int64, ctypes.c_void_p
    found.bellwether_run.restype = None
    found.bellwether_run.argtypes = [
        ctypes.c_int, ctypes.c_int, pointer, integer, pointer, integer, pointer, pointer, integer, pointer, pointer,
        ctypes.c_int,
    ]  # fmt: skip
    return found


def gradient_norms(batch: Batch, c: Coefficients) -> Tensor:
    return _run(batch, c, _GRADIENT_NORMS)


def advance(batch: Batch, c: Coefficients) -> Tensor:
    return _run(batch, c, _ADVANCE)


def descend(batch: Batch, c: Coefficients, rates: Tensor) -> None:
    _run(batch, c, _DESCEND, rates)


def step(batch: Batch, c: Coefficients, scales: Tensor | None = None) -> None:
    _run(batch, c, _STEP, scales)


@dataclass(frozen=True)
class _Table:
    """A layout in chunks, so that threads share the work evenly whatever the sizes of the parameters."""

    chunks: Tensor  # int64 [4, chunks]: tensor, offset, length, segment
    partial: Tensor  # float64 [chunks, 2]

    @classmethod
    def of(cls, layout: Layout) -> _Table:
        counts = (layout.length + _CHUNK - 1) // _CHUNK
        segment = torch.repeat_interleave(torch.arange(len(counts)), counts)
        begin = (torch.arange(len(segment)) - (counts.cumsum(0) - counts)[segment]) * _CHUNK
        length = (layout.length[segment] - begin).clamp(max=_CHUNK)
        chunks = torch.stack([layout.tensor[segment], layout.offset[segment] + begin, length, segment])
        return cls(chunks.contiguous(), torch.empty(len(segment), 2, dtype=torch.float64))


def _run(batch: Batch, c: Coefficients, which: int, each: Tensor | None = None) -> Tensor:
    table = batch.tables.get("cpu")
    if table is None:
        table = batch.tables["cpu"] = _Table.of(batch.layout)
    assert isinstance(table, _Table)
    count = len(batch.weights)
    addresses = [tensor.data_ptr() for column in batch.columns for tensor in column]
    addresses += [0] * (_COLUMNS * count - len(addresses))
    pointers = (ctypes.c_void_p * len(addresses))(*addresses)
    coefficients = (ctypes.c_float * 15)(
        c.rate, c.grad, c.l2, c.scale, c.beta1, c.weight1, c.beta2, 1 - c.beta2, c.numerator, c.root, c.eps, c.inside,
        c.shrink, c.prox, c.metric,
    )  # fmt: skip
    each = None if each is None else each.to(torch.float32).contiguous()
    segments, chunks = len(batch.layout.length), table.chunks.shape[1]
    sums = torch.empty(2, segments, dtype=torch.float64)
    library().bellwether_run(
        _FORMULAS[c.formula], which, coefficients, count, pointers, chunks, table.chunks.data_ptr(),
        None if each is None else each.data_ptr(), segments, table.partial.data_ptr(), sums.data_ptr(),
        max(1, min(torch.get_num_threads(), chunks)),
    )  # fmt: skip
    return sums
