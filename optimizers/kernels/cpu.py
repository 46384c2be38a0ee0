"""The CPU kernel: one pass over memory in C++, on as many threads as torch uses."""

from __future__ import annotations

import ctypes
import functools
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bellwether.optimizers.kernels import build
from bellwether.optimizers.kernels.coefficients import FORMULAS, Coefficients, Scalars
from bellwether.optimizers.kernels.tensor_list import COLUMNS, DTYPES, BlockTable, TensorList
from bellwether.optimizers.kernels.wide_weights import CONVERSIONS, Conversion, WideWeights

DEVICE = "cpu"

_PASSES = ("gradient_norms", "update_moments", "apply_update", "step")
# The C++ source takes the names and the order of these from here.
_DEFINITIONS = {
    "FORMULAS": ", ".join(FORMULAS).upper(),
    "PASSES": ", ".join(_PASSES).upper(),
    "CONVERSIONS": ", ".join(CONVERSIONS).upper(),
    "DTYPES": ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES).upper(),
    "SCALARS": ", ".join(Scalars._fields),
    "COLUMNS": str(COLUMNS),
}
_BLOCK = 1 << 14  # elements
_BLOCKS_IN_CACHE = 8  # for each thread; the fused step reads three of their columns twice: 1.5 MiB


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled library, built if the cache does not have it."""
    compiled = build.load(Path(__file__).with_name("cpu.cpp"), _DEFINITIONS)
    integer, number, pointer = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
    compiled.bellwether_run.restype = compiled.bellwether_fused_step.restype = None
    compiled.bellwether_run.argtypes = [
        ctypes.c_int, ctypes.c_int, pointer, pointer, pointer, pointer, pointer, integer, pointer, pointer, pointer,
        ctypes.c_int,
    ]  # fmt: skip
    compiled.bellwether_fused_step.argtypes = [
        ctypes.c_int, pointer, pointer, pointer, pointer, pointer, integer, number, number, number, integer, pointer,
        pointer, pointer, ctypes.c_int,
    ]  # fmt: skip
    compiled.bellwether_convert.restype = None
    compiled.bellwether_convert.argtypes = [
        ctypes.c_int, ctypes.c_int, pointer, pointer, integer, pointer, ctypes.c_int,
    ]  # fmt: skip
    return compiled


def prepare() -> None:
    """Compile the kernel if needed.

    Raises:
        RuntimeError: if it cannot be compiled here.
    """
    library()


def gradient_norms(tensors: TensorList, c: Coefficients) -> Tensor:
    return _run(tensors, c, "gradient_norms")


def update_moments(tensors: TensorList, c: Coefficients) -> Tensor:
    return _run(tensors, c, "update_moments")


def apply_update(tensors: TensorList, c: Coefficients, rates: Tensor) -> None:
    _run(tensors, c, "apply_update", rates)


def step(tensors: TensorList, c: Coefficients, scales: Tensor | None = None) -> None:
    _run(tensors, c, "step", scales)


def fused_step(tensors: TensorList, c: Coefficients, lr: float, bounds: tuple[float, float]) -> Tensor:
    """`update_moments`, trust ratios ||w|| / ||u|| and `apply_update` in one call, for parameters that are not sharded.

    Each segment is a whole parameter. Returns the ratios, float64 [segments].
    """
    call = _Call.of(tensors, c)
    ratios = torch.empty(call.segments, dtype=torch.float64, device="cpu")
    rates = torch.empty(call.segments, dtype=torch.float32, device="cpu")
    library().bellwether_fused_step(
        call.formula, call.scalars, call.dtypes, _pointer(call.addresses), call.table, call.first, call.segments, lr, *bounds,
        _BLOCKS_IN_CACHE * call.threads, call.partial.data_ptr(), ratios.data_ptr(), rates.data_ptr(), call.threads,
    )  # fmt: skip
    return ratios


def convert(conversion: Conversion, weights: WideWeights, keys: Tensor | None = None) -> None:
    addresses, table = weights.addresses(), weights.blocks(_BLOCK)
    library().bellwether_convert(
        CONVERSIONS.index(conversion), DTYPES.index(weights.narrow[0].dtype),
        _pointer(addresses), table.data_ptr(), len(table),
        None if keys is None else keys.data_ptr(), max(1, min(torch.get_num_threads(), len(table))),
    )  # fmt: skip


def _run(tensors: TensorList, c: Coefficients, which: str, factors: Tensor | None = None) -> Tensor:
    call = _Call.of(tensors, c)
    factors = None if factors is None else factors.to(torch.float32).contiguous()
    sums = torch.empty(call.segments, 2, dtype=torch.float64, device="cpu")
    library().bellwether_run(
        call.formula, _PASSES.index(which), call.scalars, call.dtypes, _pointer(call.addresses), call.table, call.first,
        call.segments, None if factors is None else factors.data_ptr(), call.partial.data_ptr(), sums.data_ptr(),
        call.threads,
    )  # fmt: skip
    return sums.t()


def _pointer(addresses: array[int]) -> int:
    """The address of an array, which must live as long as the call that reads it."""
    return addresses.buffer_info()[0]


class _Call(NamedTuple):
    """The arguments that every function of the library takes."""

    formula: int
    scalars: Any  # float [15]
    dtypes: Any  # int [COLUMNS], indices of DTYPES
    addresses: array[int]  # [tensors, COLUMNS]
    table: int
    first: int
    segments: int
    partial: Tensor  # float64 [blocks, 2]
    threads: int

    @classmethod
    def of(cls, tensors: TensorList, c: Coefficients) -> _Call:
        blocks = tensors.cache.get("cpu")
        if blocks is None:
            blocks = tensors.cache["cpu"] = BlockTable.of(tensors.segments, _BLOCK)
        assert isinstance(blocks, BlockTable)
        addresses, scalars = tensors.addresses(), c.scalars()
        count = len(blocks.table)
        return cls(
            FORMULAS.index(c.formula),
            (ctypes.c_float * len(scalars))(*scalars),
            (ctypes.c_int * COLUMNS)(*map(DTYPES.index, tensors.dtypes)),
            addresses,
            blocks.table.data_ptr(),
            blocks.first.data_ptr(),
            len(tensors.segments.length),
            torch.empty(count, 2, dtype=torch.float64, device="cpu"),
            max(1, min(torch.get_num_threads(), count)),
        )
