"""The cases that every kernel is tried with, and how it is compared with the reference."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bellwether.optimizers.kernels import reference
from bellwether.optimizers.kernels.tensor_list import STATE, Coefficients, Formula, Kernel, Layout, TensorList
from bellwether.optimizers.shards.layout import ParameterInfo, ParameterSlice, ShardLayout

# How far a kernel may be from the reference. Both round each operation, but not the same ones: torch multiplies and
# adds at once here and there, and takes a reciprocal in the metric. The longest way to a weight has some twenty
# roundings of half an ulp in either, so 20 ulps could be explained; 2.1 is the most that these cases have shown.
ULPS = 4

# Elements of a segment: around the width of vectors, none at all, and more than a block of either kernel.
_LONG = 16384 + 3


def _flat(numel: int, parameters: int, pieces: list[tuple[int, int, int]]) -> ShardLayout:
    """A flat tensor with pieces (parameter, offset, length); what lies between them is padding."""
    names = tuple(ParameterInfo(f"{numel}.{i}", (1,)) for i in range(parameters))
    return ShardLayout(
        torch.empty(numel), names, tuple(ParameterSlice(i, offset, 0, length) for i, offset, length in pieces), None
    )


LAYOUTS = {
    "tensors": [ShardLayout.whole(torch.empty(n), str(n)) for n in (1, 15, 16, 17, 0, 2048 + 3)],
    "flat": [_flat(17000, 5, [(0, 3, 1), (1, 4, 15), (2, 21, _LONG), (3, 16500, 0), (4, 16500, 17)])],
    "fragments": [_flat(300, 2, [(0, 2, 100), (0, 110, 16), (1, 126, 31)]), _flat(64, 1, [(0, 0, 5), (0, 40, 20)])],
    "nothing": [_flat(33, 2, [])],
}

_PLAIN = Coefficients("plain", rate=0.02)
_MOMENTUM = replace(_PLAIN, formula="momentum", beta1=0.9, weight1=0.7)
_ADAM = Coefficients(
    "adam", rate=0.02, beta1=0.9, weight1=0.1, beta2=0.99, numerator=1 / 0.271, root=1 / 0.0297**0.5, eps=1e-6
)
FORMULAS: dict[Formula, Coefficients] = {
    "adam": _ADAM,
    "amsgrad": replace(_ADAM, formula="amsgrad"),
    "momentum": _MOMENTUM,
    "nesterov": replace(_MOMENTUM, formula="nesterov"),
    "plain": _PLAIN,
}
OPTIONS: dict[str, dict[str, float]] = {
    "bare": {},
    "no eps": {"eps": 0.0},  # 0 / 0 where a vector reaches beyond the end
    "maximize": {"grad": -1.0},
    "l2": {"l2": 0.03},
    "scale": {"scale": 0.7},
    "inside": {"inside": 0.05},
    "shrink": {"shrink": 0.999},
    "prox": {"prox": 0.998},
    "metric": {"metric": 0.1},
    "all": {"grad": -1.0, "l2": 0.03, "scale": 0.7, "inside": 0.05, "shrink": 0.999, "prox": 0.998, "metric": 0.1},
}
CASES = [("fragments", formula, options) for formula in FORMULAS for options in OPTIONS]
CASES += [(layout, formula, "all") for layout in LAYOUTS for formula in FORMULAS if layout != "fragments"]


def coefficients(formula: Formula, options: str) -> Coefficients:
    c = replace(FORMULAS[formula], **OPTIONS[options])  # type: ignore[arg-type]
    return c if formula in ("adam", "amsgrad") else replace(c, metric=0.0)


def make_batch(
    layout: str, formula: Formula, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> TensorList:
    """The same float32 values every time, in any dtype; NaN where there is padding."""
    generator = torch.Generator().manual_seed(seed)
    columns: list[list[Tensor]] = []
    for name in ("weights", "grads", *STATE[formula]):
        columns.append([])
        for shard in LAYOUTS[layout]:
            values = torch.randn(shard.tensor.numel(), generator=generator)
            if name.endswith("_sq"):
                values = values.square() + 0.01
            padded = torch.full_like(values, torch.nan)
            for offset, length, _ in shard.segments():
                padded[offset : offset + length] = values[offset : offset + length]
            columns[-1].append(padded.to(device, dtype))
    return TensorList(columns[0], columns[1], columns[2:], Layout.of(LAYOUTS[layout], by_parameter=True))


@dataclass
class Outcome:
    sums: Tensor | None  # float64 [2, segments]
    columns: list[Tensor]  # weights and moments, all tensors one behind the other


def run(kernel: Kernel, which: str, batch: TensorList, c: Coefficients, sign: int = 1) -> Outcome:
    """One of PASSES; the batch is changed."""
    segments = len(batch.layout.length)
    each = torch.linspace(0.01, 0.05, segments, dtype=torch.float64, device=batch.device)
    sums = None
    if which == "gradient_norms":
        sums = kernel.gradient_norms(batch, c)
    elif which == "advance, descend":
        sums = kernel.advance(batch, c)
        kernel.descend(batch, c, sign * each)
    else:
        kernel.step(batch, c, each if which == "step, scaled" else None)
    return Outcome(sums, [torch.cat(column) for i, column in enumerate(batch.columns) if i != 1])


PASSES = ("gradient_norms", "advance, descend", "step", "step, scaled")


def compare(kernel: Kernel, layout: str, formula: Formula, options: str, device: str = "cpu") -> dict[str, Outcome]:
    """With the reference in float32 and in float64, pass by pass. Returns what the kernel has made.

    Errors are counted in ulps of the largest sum of terms that a number can come from: of itself, where none cancel.
    """
    outcomes = {}
    for which in PASSES:
        theirs, exact, terms = _expected(layout, formula, options, device, which)
        ours = run(kernel, which, make_batch(layout, formula, device=device), coefficients(formula, options))
        for mine, his, truth, size in zip(ours.columns, theirs.columns, exact.columns, terms.columns, strict=True):
            real = ~truth.isnan()
            assert torch.equal(~mine.isnan(), real), which
            if real.any():
                mine, his, truth, size = (t[real].double() for t in (mine, his, truth, size))
                assert _ulps(mine, his, size) <= ULPS, which
                assert _ulps(mine, truth, size) <= max(2 * _ulps(his, truth, size), 1), which
        if ours.sums is not None:
            # Squares of float32 are exact in float64, so only the order differs. The direction is itself rounded.
            bars = (1e-12, 1e-12 if which == "gradient_norms" else 1e-6)
            for mine, his, bar in zip(ours.sums, theirs.sums, bars, strict=True):
                torch.testing.assert_close(mine, his, rtol=bar, atol=0.0)
        outcomes[which] = ours
    return outcomes


@functools.cache
def _expected(layout: str, formula: Formula, options: str, device: str, which: str) -> tuple[Outcome, Outcome, Outcome]:
    """The reference in float32 and in float64, and the size of the terms."""
    c = coefficients(formula, options)
    single, double, positive = (make_batch(layout, formula, d, device) for d in (torch.float32, *[torch.float64] * 2))
    for tensor in itertools.chain(*positive.columns):
        tensor.abs_()
    added = replace(c, grad=abs(c.grad), rate=-c.rate, metric=-c.metric)  # no term is taken from another any more
    terms = run(reference, which, positive, added, sign=-1)
    return run(reference, which, single, c), run(reference, which, double, c), terms


def _ulps(a: Tensor, b: Tensor, size: Tensor) -> float:
    return ((a - b) / size).abs().max().item() * 2**23


def same_bits(a: Outcome, b: Outcome) -> bool:
    """Of weights and moments, also of NaN, wherever they lie."""
    pairs = zip(a.columns, b.columns, strict=True)
    return all(torch.equal(x.cpu().view(torch.int32), y.cpu().view(torch.int32)) for x, y in pairs)
