"""The CPU kernel: one pass over memory in C++, on as many threads as torch has."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from optimizers.kernels import build
from optimizers.kernels.batch import Batch, Blocks, Coefficients

DEVICE = "cpu"

_FORMULAS = {"adam": 0, "amsgrad": 1, "momentum": 2, "nesterov": 3, "plain": 4}
_GRADIENT_NORMS, _ADVANCE, _DESCEND, _STEP = range(4)
_BLOCK = 1 << 14  # elements


@functools.cache
def library() -> ctypes.CDLL:
    found = build.load(Path(__file__).with_name("cpu.cpp"))
    integer, pointer = ctypes.c_int64, ctypes.c_void_p
    found.bellwether_run.restype = None
    found.bellwether_run.argtypes = [
        ctypes.c_int, ctypes.c_int, pointer, pointer, integer, pointer, pointer, integer, pointer, pointer, ctypes.c_int,
    ]  # fmt: skip
    return found


def prepare() -> None:
    """Compile the kernel, unless that has been done.

    Raises:
        RuntimeError: if it cannot be compiled here.
    """
    library()


def gradient_norms(batch: Batch, c: Coefficients) -> Tensor:
    return _run(batch, c, _GRADIENT_NORMS)


def advance(batch: Batch, c: Coefficients) -> Tensor:
    return _run(batch, c, _ADVANCE)


def descend(batch: Batch, c: Coefficients, rates: Tensor) -> None:
    _run(batch, c, _DESCEND, rates)


def step(batch: Batch, c: Coefficients, scales: Tensor | None = None) -> None:
    _run(batch, c, _STEP, scales)


def _run(batch: Batch, c: Coefficients, which: int, each: Tensor | None = None) -> Tensor:
    blocks = batch.tables.get("cpu")
    if blocks is None:
        blocks = batch.tables["cpu"] = Blocks.of(batch.layout, _BLOCK)
    assert isinstance(blocks, Blocks)
    addresses, scalars = batch.addresses(), c.scalars()
    each = None if each is None else each.to(torch.float32).contiguous()
    count, segments = len(blocks.table), len(batch.layout.length)
    partial = torch.empty(count, 2, dtype=torch.float64, device="cpu")
    sums = torch.empty(2, segments, dtype=torch.float64, device="cpu")
    library().bellwether_run(
        _FORMULAS[c.formula], which, (ctypes.c_float * len(scalars))(*scalars),
        (ctypes.c_void_p * len(addresses))(*addresses), count, blocks.table.data_ptr(),
        None if each is None else each.data_ptr(), segments, partial.data_ptr(), sums.data_ptr(),
        max(1, min(torch.get_num_threads(), count)),
    )  # fmt: skip
    return sums
