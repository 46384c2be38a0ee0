"""The GPU kernel in Triton: one launch for each pass over a whole list of tensors.

Each program of a launch takes one block of one segment. It reads the block from one table on the device and the addresses
of the tensors from another. Blocks whose addresses and lengths are multiples of 16 bytes are read and written in vectors;
others take a launch of their own. Sums of squares are written for each block and added up by a small launch, in a fixed
order, so that the same tensors give the same bits every time; where a segment has more than `_RANGE` blocks, by two.

With ``TRITON_INTERPRET=1`` in the environment before Triton is imported, it runs on the CPU instead: slow, for tests.
"""

# mypy: disable-error-code=no-untyped-def

from __future__ import annotations

import contextlib
import subprocess
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from bellwether.optimizers.kernels import build
from bellwether.optimizers.kernels.coefficients import Coefficients
from bellwether.optimizers.kernels.interface import FusedStep
from bellwether.optimizers.kernels.tensor_list import COLUMNS, BlockTable, TensorList
from bellwether.optimizers.kernels.wide_weights import Conversion, WideWeights

fused_step: FusedStep | None = None
_BLOCK = 2048  # elements
_VECTOR_BYTES = 16
_ALIGN = 8  # elements; blocks begin at multiples of it where they can: a vector of 16-bit numbers, or two of float32
_RANGE = 1024  # blocks whose sums one program adds up
_TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_compiled: set[object] = set()  # the variants that this process has launched


@triton.jit
def _pass(
    blocks, addresses, factors, sums,
    rate, grad, l2, scale, beta1, grad_weight, beta2, one_minus_beta2, numerator, v_scale, eps, coupled_decay, shrink,
    prox, metric,
    PASS: tl.constexpr, FORMULA: tl.constexpr, FACTORS: tl.constexpr, METRIC: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr,
    W: tl.constexpr, G: tl.constexpr, M: tl.constexpr, V: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """One block of one pass, by the formula of `Scalars`, whose names these are. The compiler drops unused loads.

    W, G, M, V and TOP are the dtypes of the columns. VECTOR elements are read at once: addresses, offsets and lengths are
    multiples of it.
    """
    row = blocks + 5 * tl.program_id(0)
    columns = addresses + COLUMNS * tl.load(row)
    offset = tl.multiple_of(tl.load(row + 1), VECTOR) + tl.arange(0, BLOCK)
    mask = tl.arange(0, BLOCK) < tl.multiple_of(tl.load(row + 2), VECTOR)
    if FACTORS and PASS == "step":
        scale = tl.load(factors + tl.load(row + 3)).to(tl.float32)
    if FACTORS and PASS == "apply_update":
        rate = tl.load(factors + tl.load(row + 3)).to(tl.float32)

    w_at = _column(columns, 0, W, VECTOR) + offset
    w = _load(w_at, mask, W)
    u = grad * _load(_column(columns, 1, G, VECTOR) + offset, mask, G)
    if PASS != "gradient_norms":
        g = scale * (u + l2 * w)
        u = g
        if FORMULA != "plain":
            m_at = _column(columns, 2, M, VECTOR) + offset
            m = _load(m_at, mask, M)
            if PASS != "apply_update":
                m = beta1 * m + grad_weight * g
                _store(m_at, m, mask, M)
            u = m
            if FORMULA == "nesterov":
                u = g + beta1 * m
        u = u * numerator
        if FORMULA == "adam" or FORMULA == "amsgrad":
            v_at = _column(columns, 3, V, VECTOR) + offset
            v = _load(v_at, mask, V)
            if PASS != "apply_update":
                v = beta2 * v + one_minus_beta2 * g * g
                _store(v_at, v, mask, V)
            if FORMULA == "amsgrad":
                top_at = _column(columns, 4, TOP, VECTOR) + offset
                top = _load(top_at, mask, TOP)
                if PASS != "apply_update":
                    top = tl.where(top > v, top, v)
                    _store(top_at, top, mask, TOP)
                v = top
            denominator = tl.sqrt_rn(v) * v_scale + eps
            u = tl.div_rn(u, denominator)
        u = u + coupled_decay * w

    if PASS == "gradient_norms" or PASS == "update_moments":
        block = tl.load(row + 4)
        tl.store(sums + 2 * block, _sum_of_squares(w, mask))
        tl.store(sums + 2 * block + 1, _sum_of_squares(u, mask))
    else:
        w = (shrink * w - rate * u) * prox
        if METRIC:
            w = tl.div_rn(w, 1 + tl.div_rn(metric, denominator))
        _store(w_at, w, mask, W)


@triton.jit
def _column(columns, index, DTYPE: tl.constexpr, VECTOR: tl.constexpr):
    """Address of the tensor's weights, gradients, or one of its moments."""
    at = tl.load(columns + index).to(tl.pointer_type(DTYPE))
    return tl.multiple_of(at, VECTOR * DTYPE.primitive_bitwidth // 8)


# bf16 is converted bit by bit: Triton's interpreter cuts off where a GPU rounds, and is wrong for subnormal numbers.


@triton.jit
def _widen(x, DTYPE: tl.constexpr):
    if tl.bfloat16 == DTYPE:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def _narrow(x, DTYPE: tl.constexpr):
    """Round to nearest, ties to even."""
    if tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def _load(at, mask, DTYPE: tl.constexpr):
    return _widen(tl.load(at, mask, 0.0), DTYPE)


@triton.jit
def _store(at, x, mask, DTYPE: tl.constexpr):
    tl.store(at, _narrow(x, DTYPE), mask)


@triton.jit
def _convert(
    blocks, addresses, keys, CONVERSION: tl.constexpr, KEPT: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr
):
    """One block of `WideWeights`: to float32, or back to 16 bits."""
    row = blocks + 5 * tl.program_id(0)
    columns = addresses + 3 * tl.load(row)
    offset = tl.load(row + 1) + tl.arange(0, BLOCK)
    mask = tl.arange(0, BLOCK) < tl.load(row + 2)
    wide_at = _column(columns, 0, tl.float32, 1) + offset
    narrow_at = _column(columns, 1, DTYPE, 1) + offset
    kept_at = _column(columns, 2, DTYPE, 1) + offset
    if CONVERSION == "widen":
        x = _load(narrow_at, mask, DTYPE)
        if KEPT:
            x = x + _load(kept_at, mask, DTYPE)
        tl.store(wide_at, x, mask)
    if CONVERSION == "kahan":
        x = tl.load(wide_at, mask, 0.0)
        rounded = _narrow(x, DTYPE)
        tl.store(narrow_at, rounded, mask)
        _store(kept_at, x - _widen(rounded, DTYPE), mask, DTYPE)
    if CONVERSION == "stochastic":
        x = tl.load(wide_at, mask, 0.0)
        index = tl.load(row + 4) + tl.arange(0, BLOCK)
        key = tl.load(keys + tl.load(row + 3)).to(tl.uint32)
        random = _mix(_mix(index.to(tl.uint32) ^ key) ^ (index >> 32).to(tl.uint32) ^ 0x9E3779B9)
        _store(narrow_at, _round_up_or_down(x, random, DTYPE), mask, DTYPE)


@triton.jit
def _mix(h):
    """murmur3's finalizer."""
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    return h ^ (h >> 16)


@triton.jit
def _round_up_or_down(x, random, DTYPE: tl.constexpr):
    """See `bellwether.optimizers.rounding`."""
    bits = x.to(tl.uint32, bitcast=True)
    if tl.bfloat16 == DTYPE:
        rounded = ((bits + (random & 0xFFFF)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    else:
        rounded = ((bits + (random & 0x1FFF)) & 0xFFFFE000).to(tl.float32, bitcast=True)
        subnormal = tl.floor(x * 16777216.0 + (random & 0xFFFF).to(tl.float32) / 65536.0) / 16777216.0
        rounded = tl.where(tl.abs(x) < 0.00006103515625, subnormal, rounded)
    return tl.where((bits & 0x7F800000) != 0x7F800000, rounded, x)


@triton.jit
def _sum_of_squares(x, mask):
    x = tl.where(mask, x, 0.0).to(tl.float64)  # past the end it may be 0 / 0
    return tl.sum(x * x)


@triton.jit
def _add(first, partial, sums, BLOCK: tl.constexpr):
    """Add up both columns of ``partial`` over one range of its rows, which ends where the next begins."""
    index = tl.program_id(0)
    end = tl.load(first + index + 1)
    column = tl.arange(0, 2)
    total = tl.zeros([BLOCK, 2], tl.float64)
    for begin in range(tl.load(first + index), end, BLOCK):
        row = begin + tl.arange(0, BLOCK)[:, None]
        total += tl.load(partial + 2 * row + column[None, :], row < end, 0.0)
    tl.store(sums + 2 * index + column, tl.sum(total, 0))


DEVICE = "cuda" if isinstance(_pass, triton.JITFunction) else "cpu"  # cpu: the interpreter


def prepare() -> None:
    """Check that kernels can be launched here.

    Raises:
        RuntimeError: if there is no GPU, or no C compiler and headers for Triton's launcher.
    """
    if DEVICE == "cpu":
        return
    if not torch.cuda.is_available():
        raise RuntimeError("there is no GPU; with TRITON_INTERPRET=1 in the environment it runs on the CPU, slowly")
    try:
        triton.runtime.driver.active.get_current_target()
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"Triton cannot build its launcher: {error}") from error


def gradient_norms(tensors: TensorList, c: Coefficients) -> Tensor:
    return _sums(tensors, c, "gradient_norms")


def update_moments(tensors: TensorList, c: Coefficients) -> Tensor:
    return _sums(tensors, c, "update_moments")


def apply_update(tensors: TensorList, c: Coefficients, rates: Tensor) -> None:
    _launch(_Tables.of(tensors), tensors, c, "apply_update", factors=rates)


def step(tensors: TensorList, c: Coefficients, scales: Tensor | None = None) -> None:
    _launch(_Tables.of(tensors), tensors, c, "step", factors=scales)


def convert(conversion: Conversion, weights: WideWeights, keys: Tensor | None = None) -> None:
    device, key = weights.wide[0].device, "slices in blocks, on the device"
    if key not in weights.cache:
        weights.cache[key] = _upload(weights.blocks(_BLOCK), device)
    blocks = weights.cache[key]
    assert isinstance(blocks, Tensor)
    if not len(blocks):
        return
    addresses = torch.tensor(weights.addresses(), dtype=torch.int64, device="cpu")
    constants = {
        "CONVERSION": conversion, "KEPT": weights.kept is not None, "BLOCK": _BLOCK,
        "DTYPE": _TRITON_DTYPES[weights.narrow[0].dtype],
    }  # fmt: skip
    with _on(device), _compiled_once_a_node(("_convert", *constants.values())):
        _convert[(len(blocks),)](
            blocks, _upload(addresses, device), None if keys is None else _upload(keys, device), **constants,
            enable_fp_fusion=False,
        )  # fmt: skip


@dataclass
class _Tables:
    """The tables that the launches for a list of tensors read, on its device."""

    blocks: dict[bool, Tensor]  # int64 [blocks, 5]: tensor, offset, length, segment, block; by whether they are aligned
    count: int  # of all blocks
    ranges: list[Tensor]  # int64 [ranges + 1] for each level of `_add`; the ranges of the last one are the segments
    addresses: Tensor  # int64 [tensors, COLUMNS]: TensorList.addresses
    uploaded: array[int]  # the addresses as last copied to the device
    aligned: bool = False  # whether all of these are

    @classmethod
    def of(cls, tensors: TensorList) -> _Tables:
        key = f"triton on {tensors.device}"
        tables = tensors.cache.get(key)
        if tables is None:
            tables = tensors.cache[key] = cls._make(tensors)
        assert isinstance(tables, cls)
        addresses = tensors.addresses()
        if addresses != tables.uploaded:  # gradients are often other tensors than in the step before
            table = torch.tensor(addresses, dtype=torch.int64, device="cpu")
            tables.aligned = not (table % _VECTOR_BYTES).any()
            tables.addresses, tables.uploaded = _upload(table, tensors.device), addresses
        return tables

    @classmethod
    def _make(cls, tensors: TensorList) -> _Tables:
        blocks = BlockTable.of(tensors.segments, _BLOCK, _ALIGN)
        rows = torch.cat([blocks.table, torch.arange(len(blocks.table), device="cpu")[:, None]], dim=1)
        aligned = (rows[:, 1:3] % _ALIGN == 0).all(dim=1)
        parts, first = blocks.ranges(_RANGE)
        levels = [blocks.first] if len(parts) <= len(first) else [parts, first]
        return cls(
            {key: _upload(rows[aligned == key], tensors.device) for key in (True, False)},
            len(rows),
            [_upload(level, tensors.device) for level in levels],
            torch.empty(0, dtype=torch.int64, device="cpu"),
            array("q"),
        )


def _upload(table: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without a synchronization: from pinned memory, which torch keeps until it has been read."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


def _sums(tensors: TensorList, c: Coefficients, which: str) -> Tensor:
    """Run a pass that computes sums. The result is [2, segments], not contiguous."""
    tables = _Tables.of(tensors)
    sums = torch.empty(tables.count, 2, dtype=torch.float64, device=tensors.device)
    _launch(tables, tensors, c, which, sums=sums)
    for first in tables.ranges:
        partial, sums = sums, torch.empty(len(first) - 1, 2, dtype=torch.float64, device=tensors.device)
        if len(first) > 1:
            with _on(tensors.device), _compiled_once_a_node("_add"):
                _add[(len(first) - 1,)](first, partial, sums, BLOCK=256)
    return sums.t()


def _launch(
    tables: _Tables,
    tensors: TensorList,
    c: Coefficients,
    which: str,
    factors: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    dtypes = [_TRITON_DTYPES[dtype] for dtype in tensors.dtypes]
    width = 8 * _VECTOR_BYTES // max(dtype.primitive_bitwidth for dtype in dtypes)
    constants = {
        "PASS": which, "FORMULA": c.formula, "FACTORS": factors is not None, "METRIC": c.metric != 0, "COLUMNS": COLUMNS,
        "BLOCK": _BLOCK,
        **dict(zip(("W", "G", "M", "V", "TOP"), [*dtypes, *[tl.float32] * (COLUMNS - len(dtypes))], strict=True)),
    }  # fmt: skip
    for aligned, blocks in tables.blocks.items():
        if not len(blocks):
            continue
        constants["VECTOR"] = width if aligned and tables.aligned else 1
        with _on(tensors.device), _compiled_once_a_node(tuple(constants.values())):
            _pass[(len(blocks),)](
                blocks,
                tables.addresses,
                factors,
                sums,
                **c.scalars()._asdict(),
                **constants,
                num_warps=warps(constants["VECTOR"]),
                enable_fp_fusion=False,  # rounds as the other kernels do; memory is the bottleneck, so it costs nothing
            )


def warps(vector: int) -> int:
    """Warps of a program. Where elements are read one by one, 16 for each thread are so many registers that some are spilled."""
    return 4 if vector > 1 else 8


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def _compiled_once_a_node(variant: object) -> Iterator[None]:
    """Holds a lock while a variant of a kernel is first launched: one rank compiles it, the others find it in Triton's cache."""
    if variant in _compiled or DEVICE == "cpu":
        yield
        return
    with build.locked(build.folder() / "triton.lock"):
        yield
    _compiled.add(variant)
