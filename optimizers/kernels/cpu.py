"""The CPU kernel: one pass over memory in C++, on as many threads as torch has."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bellwether.optimizers.kernels import build
from bellwether.optimizers.kernels.tensor_list import Blocks, Coefficients, TensorList

DEVICE = "cpu"

_FORMULAS = {"adam": 0, "amsgrad": 1, "momentum": 2, "nesterov": 3, "plain": 4}
_GRADIENT_NORMS, _ADVANCE, _DESCEND, _STEP = range(4)
_BLOCK = 1 << 14  # elements
_TOGETHER = 8  # blocks a thread, of which three columns are read twice: 1.5 MiB


@functools.cache
def library() -> ctypes.CDLL:
    found = build.load(Path(__file__).with_name("cpu.cpp"))
    integer, number, pointer = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
    found.bellwether_run.restype = found.bellwether_adapt.restype = None
    found.bellwether_run.argtypes = [
        ctypes.c_int, ctypes.c_int, pointer, pointer, pointer, pointer, integer, pointer, pointer, pointer, ctypes.c_int,
    ]  # fmt: skip
    found.bellwether_adapt.argtypes = [
        ctypes.c_int, pointer, pointer, pointer, pointer, integer, number, number, number, integer, pointer, pointer,
        pointer, ctypes.c_int,
    ]  # fmt: skip
    return found


def prepare() -> None:
    """Compile the kernel, unless that has been done.

    Raises:
        RuntimeError: if it cannot be compiled here.
    """
    library()


def gradient_norms(batch: TensorList, c: Coefficients) -> Tensor:
    return _run(batch, c, _GRADIENT_NORMS)


def advance(batch: TensorList, c: Coefficients) -> Tensor:
    return _run(batch, c, _ADVANCE)


def descend(batch: TensorList, c: Coefficients, rates: Tensor) -> None:
    _run(batch, c, _DESCEND, rates)


def step(batch: TensorList, c: Coefficients, scales: Tensor | None = None) -> None:
    _run(batch, c, _STEP, scales)


def adapt(batch: TensorList, c: Coefficients, lr: float, bounds: tuple[float, float]) -> Tensor:
    """`advance`, the trust ratios, and `descend` in one call, where nothing has to be asked of other ranks between.

    Each segment is a whole parameter. Returns the ratios, float64 [segments].
    """
    call = _Call.of(batch, c)
    ratios = torch.empty(call.segments, dtype=torch.float64, device="cpu")
    rates = torch.empty(call.segments, dtype=torch.float32, device="cpu")
    library().bellwether_adapt(
        call.formula, call.scalars, call.addresses, call.table, call.first, call.segments, lr, *bounds,
        _TOGETHER * call.threads, call.partial.data_ptr(), ratios.data_ptr(), rates.data_ptr(), call.threads,
    )  # fmt: skip
    return ratios


def _run(batch: TensorList, c: Coefficients, which: int, each: Tensor | None = None) -> Tensor:
    call = _Call.of(batch, c)
    each = None if each is None else each.to(torch.float32).contiguous()
    sums = torch.empty(call.segments, 2, dtype=torch.float64, device="cpu")
    library().bellwether_run(
        call.formula, which, call.scalars, call.addresses, call.table, call.first, call.segments,
        None if each is None else each.data_ptr(), call.partial.data_ptr(), sums.data_ptr(), call.threads,
    )  # fmt: skip
    return sums.t()


class _Call(NamedTuple):
    """What every call of the library is given."""

    formula: int
    scalars: Any  # float [15]
    addresses: Any  # pointers [tensors, 5]
    table: int
    first: int
    segments: int
    partial: Tensor  # float64 [blocks, 2]
    threads: int

    @classmethod
    def of(cls, batch: TensorList, c: Coefficients) -> _Call:
        blocks = batch.tables.get("cpu")
        if blocks is None:
            blocks = batch.tables["cpu"] = Blocks.of(batch.layout, _BLOCK)
        assert isinstance(blocks, Blocks)
        addresses, scalars = batch.addresses(), c.scalars()
        count = len(blocks.table)
        return cls(
            _FORMULAS[c.formula],
            (ctypes.c_float * len(scalars))(*scalars),
            (ctypes.c_void_p * len(addresses))(*addresses),
            blocks.table.data_ptr(),
            blocks.first.data_ptr(),
            len(batch.layout.length),
            torch.empty(count, 2, dtype=torch.float64, device="cpu"),
            max(1, min(torch.get_num_threads(), count)),
        )
