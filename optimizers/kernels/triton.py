"""The GPU kernel: each pass over a whole batch of tensors is one launch, in Triton.

Each program of a launch takes one block of one segment. Which, it finds in a table on the device; where the tensors
lie, in another. Sums of squares are written block by block and added up by a second, small launch, in an order that the
layout alone decides, so that the same batch gives the same bits every time.

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

from bellwether.optimizers.kernels.tensor_list import Blocks, Coefficients, TensorList

_BLOCK = 2048  # elements


@triton.jit
def _pass(
    blocks, addresses, each, sums,
    rate, grad, l2, scale, beta1, weight1, beta2, rest2, numerator, root, eps, inside, shrink, prox, metric,
    PASS: tl.constexpr, FORMULA: tl.constexpr, EACH: tl.constexpr, METRIC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of whichever pass. The numbers are `Coefficients.scalars`; loads without a use, the compiler drops."""
    row = blocks + 4 * tl.program_id(0)
    columns = addresses + 5 * tl.load(row)
    mask = tl.arange(0, BLOCK) < tl.load(row + 2)
    place = tl.load(row + 1) + tl.arange(0, BLOCK)
    if EACH and PASS == "step":
        scale = tl.load(each + tl.load(row + 3)).to(tl.float32)
    if EACH and PASS == "descend":
        rate = tl.load(each + tl.load(row + 3)).to(tl.float32)

    w_at = _column(columns, 0) + place
    w = tl.load(w_at, mask, 0.0)
    u = grad * tl.load(_column(columns, 1) + place, mask, 0.0)
    if PASS != "gradient_norms":
        g = scale * (u + l2 * w)
        u = g
        if FORMULA != "plain":
            m_at = _column(columns, 2) + place
            m = tl.load(m_at, mask, 0.0)
            if PASS != "descend":
                m = beta1 * m + weight1 * g
                tl.store(m_at, m, mask)
            u = m
            if FORMULA == "nesterov":
                u = g + beta1 * m
        u = u * numerator
        if FORMULA == "adam" or FORMULA == "amsgrad":
            v_at = _column(columns, 3) + place
            v = tl.load(v_at, mask, 0.0)
            if PASS != "descend":
                v = beta2 * v + rest2 * g * g
                tl.store(v_at, v, mask)
            if FORMULA == "amsgrad":
                top_at = _column(columns, 4) + place
                top = tl.load(top_at, mask, 0.0)
                if PASS != "descend":
                    top = tl.where(top > v, top, v)
                    tl.store(top_at, top, mask)
                v = top
            denominator = tl.sqrt_rn(v) * root + eps
            u = tl.div_rn(u, denominator)
        u = u + inside * w

    if PASS == "gradient_norms" or PASS == "advance":
        tl.store(sums + 2 * tl.program_id(0), _sum_of_squares(w, mask))
        tl.store(sums + 2 * tl.program_id(0) + 1, _sum_of_squares(u, mask))
    else:
        w = (shrink * w - rate * u) * prox
        if METRIC:
            w = tl.div_rn(w, 1 + tl.div_rn(metric, denominator))
        tl.store(w_at, w, mask)


@triton.jit
def _column(columns, index):
    """The tensor's weights, gradients, or a moment of it."""
    return tl.load(columns + index).to(tl.pointer_type(tl.float32))


@triton.jit
def _sum_of_squares(x, mask):
    x = tl.where(mask, x, 0.0).to(tl.float64)  # beyond the end it may be 0 / 0
    return tl.sum(x * x)


@triton.jit
def _add(first, partial, sums, BLOCK: tl.constexpr):
    """Both sums of one segment from those of its blocks."""
    segment = tl.program_id(0)
    end = tl.load(first + segment + 1)
    which = tl.arange(0, 2)
    total = tl.zeros([BLOCK, 2], tl.float64)
    for begin in range(tl.load(first + segment), end, BLOCK):
        block = begin + tl.arange(0, BLOCK)[:, None]
        total += tl.load(partial + 2 * block + which[None, :], block < end, 0.0)
    tl.store(sums + 2 * segment + which, tl.sum(total, 0))


DEVICE = "cuda" if isinstance(_pass, triton.JITFunction) else "cpu"  # the interpreter's


def prepare() -> None:
    """Find out whether kernels can be launched here.

    Raises:
        RuntimeError: if not, for want of a GPU, or of the C compiler and headers that Triton builds its launcher with.
    """
    if DEVICE == "cpu":
        return
    if not torch.cuda.is_available():
        raise RuntimeError("there is no GPU; with TRITON_INTERPRET=1 in the environment it runs on the CPU, slowly")
    try:
        triton.runtime.driver.active.get_current_target()
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"Triton cannot build its launcher: {error}") from error


def gradient_norms(batch: TensorList, c: Coefficients) -> Tensor:
    return _sums(batch, c, "gradient_norms")


def advance(batch: TensorList, c: Coefficients) -> Tensor:
    return _sums(batch, c, "advance")


def descend(batch: TensorList, c: Coefficients, rates: Tensor) -> None:
    _launch(_Tables.of(batch), batch, c, "descend", each=rates)


def step(batch: TensorList, c: Coefficients, scales: Tensor | None = None) -> None:
    _launch(_Tables.of(batch), batch, c, "step", each=scales)


@dataclass
class _Tables:
    """What a batch's launches read, on its device."""

    blocks: Tensor  # int64 [blocks, 4]
    first: Tensor  # int64 [segments + 1]
    addresses: Tensor  # int64 [tensors, 5], as Batch.addresses has them
    known: list[int]  # the addresses, as last uploaded

    @classmethod
    def of(cls, batch: TensorList) -> _Tables:
        key = f"triton on {batch.device}"
        tables = batch.tables.get(key)
        if tables is None:
            blocks = Blocks.of(batch.layout, _BLOCK)
            nowhere = torch.empty(0, dtype=torch.int64)
            tables = cls(_upload(blocks.table, batch.device), _upload(blocks.first, batch.device), nowhere, [])
            batch.tables[key] = tables
        assert isinstance(tables, cls)
        addresses = batch.addresses()
        if addresses != tables.known:  # gradients are often other tensors than in the step before
            tables.addresses = _upload(torch.tensor(addresses, dtype=torch.int64), batch.device)
            tables.known = addresses
        return tables


def _upload(table: Tensor, device: torch.device) -> Tensor:
    """To the device, without waiting for it: from pinned memory, which torch keeps until it has been read."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


def _sums(batch: TensorList, c: Coefficients, which: str) -> Tensor:
    """Runs a pass that sums. The result is [2, segments], not contiguous."""
    tables = _Tables.of(batch)
    segments = len(tables.first) - 1
    partial = torch.empty(len(tables.blocks), 2, dtype=torch.float64, device=batch.device)
    sums = torch.empty(segments, 2, dtype=torch.float64, device=batch.device)
    _launch(tables, batch, c, which, sums=partial)
    if segments:
        with _on(batch.device):
            _add[(segments,)](tables.first, partial, sums, BLOCK=256)
    return sums.t()


def _launch(
    tables: _Tables,
    batch: TensorList,
    c: Coefficients,
    which: str,
    each: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    if not len(tables.blocks):
        return
    with _on(batch.device):
        _pass[(len(tables.blocks),)](
            tables.blocks,
            tables.addresses,
            each,
            sums,
            *c.scalars(),
            PASS=which,
            FORMULA=c.formula,
            EACH=each is not None,
            METRIC=c.metric != 0,
            BLOCK=_BLOCK,
            enable_fp_fusion=False,  # rounds as the other kernels do; what counts here is memory, so it costs nothing
        )


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, whichever has the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
