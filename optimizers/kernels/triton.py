"""The GPU kernel in Triton: one launch for each pass over a whole list of tensors.

Each program of a launch takes one block of one segment. It reads the block from one table on the device and the addresses
of the tensors from another. Sums of squares are written for each block and added up by a second, small launch, in a fixed
order, so that the same tensors give the same bits every time.

With ``TRITON_INTERPRET=1`` in the environment before Triton is imported, it runs on the CPU instead: slow, for tests.
"""

# mypy: disable-error-code=no-untyped-def

from __future__ import annotations

import contextlib
import subprocess
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from bellwether.optimizers.kernels.coefficients import Coefficients
from bellwether.optimizers.kernels.interface import FusedStep
from bellwether.optimizers.kernels.tensor_list import COLUMNS, BlockTable, TensorList

fused_step: FusedStep | None = None
_BLOCK = 2048  # elements


@triton.jit
def _pass(
    blocks, addresses, factors, sums,
    rate, grad, l2, scale, beta1, grad_weight, beta2, one_minus_beta2, numerator, v_scale, eps, coupled_decay, shrink,
    prox, metric,
    PASS: tl.constexpr, FORMULA: tl.constexpr, FACTORS: tl.constexpr, METRIC: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one pass, by the formula of `Scalars`, whose names these are. The compiler drops unused loads."""
    row = blocks + 4 * tl.program_id(0)
    columns = addresses + COLUMNS * tl.load(row)
    mask = tl.arange(0, BLOCK) < tl.load(row + 2)
    offset = tl.load(row + 1) + tl.arange(0, BLOCK)
    if FACTORS and PASS == "step":
        scale = tl.load(factors + tl.load(row + 3)).to(tl.float32)
    if FACTORS and PASS == "apply_update":
        rate = tl.load(factors + tl.load(row + 3)).to(tl.float32)

    w_at = _column(columns, 0) + offset
    w = tl.load(w_at, mask, 0.0)
    u = grad * tl.load(_column(columns, 1) + offset, mask, 0.0)
    if PASS != "gradient_norms":
        g = scale * (u + l2 * w)
        u = g
        if FORMULA != "plain":
            m_at = _column(columns, 2) + offset
            m = tl.load(m_at, mask, 0.0)
            if PASS != "apply_update":
                m = beta1 * m + grad_weight * g
                tl.store(m_at, m, mask)
            u = m
            if FORMULA == "nesterov":
                u = g + beta1 * m
        u = u * numerator
        if FORMULA == "adam" or FORMULA == "amsgrad":
            v_at = _column(columns, 3) + offset
            v = tl.load(v_at, mask, 0.0)
            if PASS != "apply_update":
                v = beta2 * v + one_minus_beta2 * g * g
                tl.store(v_at, v, mask)
            if FORMULA == "amsgrad":
                top_at = _column(columns, 4) + offset
                top = tl.load(top_at, mask, 0.0)
                if PASS != "apply_update":
                    top = tl.where(top > v, top, v)
                    tl.store(top_at, top, mask)
                v = top
            denominator = tl.sqrt_rn(v) * v_scale + eps
            u = tl.div_rn(u, denominator)
        u = u + coupled_decay * w

    if PASS == "gradient_norms" or PASS == "update_moments":
        tl.store(sums + 2 * tl.program_id(0), _sum_of_squares(w, mask))
        tl.store(sums + 2 * tl.program_id(0) + 1, _sum_of_squares(u, mask))
    else:
        w = (shrink * w - rate * u) * prox
        if METRIC:
            w = tl.div_rn(w, 1 + tl.div_rn(metric, denominator))
        tl.store(w_at, w, mask)


@triton.jit
def _column(columns, index):
    """Address of the tensor's weights, gradients, or one of its moments."""
    return tl.load(columns + index).to(tl.pointer_type(tl.float32))


@triton.jit
def _sum_of_squares(x, mask):
    x = tl.where(mask, x, 0.0).to(tl.float64)  # past the end it may be 0 / 0
    return tl.sum(x * x)


@triton.jit
def _add(first, partial, sums, BLOCK: tl.constexpr):
    """Add up both sums of one segment from those of its blocks."""
    segment = tl.program_id(0)
    end = tl.load(first + segment + 1)
    column = tl.arange(0, 2)
    total = tl.zeros([BLOCK, 2], tl.float64)
    for begin in range(tl.load(first + segment), end, BLOCK):
        block = begin + tl.arange(0, BLOCK)[:, None]
        total += tl.load(partial + 2 * block + column[None, :], block < end, 0.0)
    tl.store(sums + 2 * segment + column, tl.sum(total, 0))


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


@dataclass
class _Tables:
    """The tables that the launches for a list of tensors read, on its device."""

    blocks: Tensor  # int64 [blocks, 4]
    first: Tensor  # int64 [segments + 1]
    addresses: Tensor  # int64 [tensors, COLUMNS]: TensorList.addresses
    uploaded: list[int]  # the addresses as last copied to the device

    @classmethod
    def of(cls, tensors: TensorList) -> _Tables:
        key = f"triton on {tensors.device}"
        tables = tensors.cache.get(key)
        if tables is None:
            blocks = BlockTable.of(tensors.segments, _BLOCK)
            empty = torch.empty(0, dtype=torch.int64, device="cpu")
            tables = cls(_upload(blocks.table, tensors.device), _upload(blocks.first, tensors.device), empty, [])
            tensors.cache[key] = tables
        assert isinstance(tables, cls)
        addresses = tensors.addresses()
        if addresses != tables.uploaded:  # gradients are often other tensors than in the step before
            tables.addresses = _upload(torch.tensor(addresses, dtype=torch.int64, device="cpu"), tensors.device)
            tables.uploaded = addresses
        return tables


def _upload(table: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without a synchronization: from pinned memory, which torch keeps until it has been read."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


def _sums(tensors: TensorList, c: Coefficients, which: str) -> Tensor:
    """Run a pass that computes sums. The result is [2, segments], not contiguous."""
    tables = _Tables.of(tensors)
    segments = len(tables.first) - 1
    partial = torch.empty(len(tables.blocks), 2, dtype=torch.float64, device=tensors.device)
    sums = torch.empty(segments, 2, dtype=torch.float64, device=tensors.device)
    _launch(tables, tensors, c, which, sums=partial)
    if segments:
        with _on(tensors.device):
            _add[(segments,)](tables.first, partial, sums, BLOCK=256)
    return sums.t()


def _launch(
    tables: _Tables,
    tensors: TensorList,
    c: Coefficients,
    which: str,
    factors: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    if not len(tables.blocks):
        return
    with _on(tensors.device):
        _pass[(len(tables.blocks),)](
            tables.blocks,
            tables.addresses,
            factors,
            sums,
            **c.scalars()._asdict(),
            PASS=which,
            FORMULA=c.formula,
            FACTORS=factors is not None,
            METRIC=c.metric != 0,
            COLUMNS=COLUMNS,
            BLOCK=_BLOCK,
            enable_fp_fusion=False,  # rounds as the other kernels do; memory is the bottleneck, so it costs nothing
        )


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
