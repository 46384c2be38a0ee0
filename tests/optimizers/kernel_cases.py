"""The cases that every kernel is tested with, and the comparison with the same formula in torch."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bellwether.optimizers.kernels.coefficients import Coefficients, Formula
from bellwether.optimizers.kernels.interface import Kernel
from bellwether.optimizers.kernels.tensor_list import SegmentTable, TensorList
from bellwether.optimizers.shards.layout import ParameterInfo, ParameterSlice, ShardLayout
from tests.optimizers import coefficients_in_torch as reference

# Tolerance between a kernel and torch. Both round each operation, but not the same ones: torch fuses some multiplies
# and adds, and takes a reciprocal in the metric. The longest path to a weight has about twenty roundings of half an ulp
# in each, so an error of 20 ulps would be plausible; the largest error seen in these cases is 2.1.
ULPS = 4

# Segment lengths: around the width of vectors, zero, and more than a block of either kernel.
_LONG = 16384 + 3


def _flat(numel: int, parameters: int, slices: list[tuple[int, int, int]]) -> ShardLayout:
    """A flat tensor with slices (parameter, offset, length), and padding between them."""
    names = tuple(ParameterInfo(f"{numel}.{i}", (1,)) for i in range(parameters))
    return ShardLayout(
        torch.empty(numel), names, tuple(ParameterSlice(i, offset, 0, length) for i, offset, length in slices), None
    )


LAYOUTS = {
    "tensors": [ShardLayout.whole(torch.empty(n), str(n)) for n in (1, 15, 16, 17, 0, 2048 + 3)],
    "flat": [_flat(17000, 5, [(0, 3, 1), (1, 4, 15), (2, 21, _LONG), (3, 16500, 0), (4, 16500, 17)])],
    "fragments": [_flat(300, 2, [(0, 2, 100), (0, 110, 16), (1, 126, 31)]), _flat(64, 1, [(0, 0, 5), (0, 40, 20)])],
    "nothing": [_flat(33, 2, [])],
}

_PLAIN = Coefficients("plain", rate=0.02)
_MOMENTUM = replace(_PLAIN, formula="momentum", beta1=0.9, grad_weight=0.7)
_ADAM = Coefficients(
    "adam", rate=0.02, beta1=0.9, grad_weight=0.1, beta2=0.99, numerator=1 / 0.271, v_scale=1 / 0.0297**0.5, eps=1e-6
)
STATE: dict[Formula, tuple[str, ...]] = {
    "adam": ("exp_avg", "exp_avg_sq"),
    "amsgrad": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "momentum": ("momentum_buffer",),
    "nesterov": ("momentum_buffer",),
    "plain": (),
}
FORMULAS: dict[Formula, Coefficients] = {
    "adam": _ADAM,
    "amsgrad": replace(_ADAM, formula="amsgrad"),
    "momentum": _MOMENTUM,
    "nesterov": replace(_MOMENTUM, formula="nesterov"),
    "plain": _PLAIN,
}
OPTIONS: dict[str, dict[str, float]] = {
    "bare": {},
    "no eps": {"eps": 0.0},  # gives 0 / 0 in the lanes of a vector beyond the end
    "maximize": {"grad": -1.0},
    "l2": {"l2": 0.03},
    "scale": {"scale": 0.7},
    "coupled_decay": {"coupled_decay": 0.05},
    "shrink": {"shrink": 0.999},
    "prox": {"prox": 0.998},
    "metric": {"metric": 0.1},
    "all": {
        "grad": -1.0,
        "l2": 0.03,
        "scale": 0.7,
        "coupled_decay": 0.05,
        "shrink": 0.999,
        "prox": 0.998,
        "metric": 0.1,
    },
}
CASES = [("fragments", formula, options) for formula in FORMULAS for options in OPTIONS]
CASES += [(layout, formula, "all") for layout in LAYOUTS for formula in FORMULAS if layout != "fragments"]


def coefficients(formula: Formula, options: str) -> Coefficients:
    c = replace(FORMULAS[formula], **OPTIONS[options])  # type: ignore[arg-type]
    return c if formula in ("adam", "amsgrad") else replace(c, metric=0.0)


Dtypes = tuple[torch.dtype, ...]  # of weights, gradients and moments
FP32: Dtypes = (torch.float32,) * 5


def make_tensors(
    layout: str,
    formula: Formula,
    dtype: torch.dtype | None = torch.float32,
    device: str = "cpu",
    seed: int = 0,
    rounded: Sequence[torch.dtype] = FP32,
) -> TensorList:
    """The same values every time, with NaN in the padding.

    Values are rounded to the dtypes of ``rounded``, and stay in them if ``dtype`` is None.
    """
    generator = torch.Generator().manual_seed(seed)
    columns: list[list[Tensor]] = []
    for name, narrow in zip(("weights", "grads", *STATE[formula]), rounded, strict=False):
        columns.append([])
        for shard in LAYOUTS[layout]:
            values = torch.randn(shard.tensor.numel(), generator=generator)
            if name.endswith("_sq"):
                values = values.square() + 0.01
            padded = torch.full_like(values, torch.nan)
            for offset, length, _ in shard.segments():
                padded[offset : offset + length] = values[offset : offset + length]
            columns[-1].append(padded.to(narrow).to(device, dtype or narrow))
    states = dict(zip(STATE[formula], columns[2:], strict=True))
    return TensorList(columns[0], columns[1], states, SegmentTable.of(LAYOUTS[layout], by_parameter=True))


@dataclass
class Outcome:
    sums: Tensor | None  # float64 [2, segments]
    columns: list[Tensor]  # weights and moments, all tensors concatenated


def run(kernel: Kernel, which: str, tensors: TensorList, c: Coefficients, sign: int = 1) -> Outcome:
    """Run one of PASSES, which changes the tensors."""
    segments = len(tensors.segments.length)
    factors = torch.linspace(0.01, 0.05, segments, dtype=torch.float64, device=tensors.device)
    sums = None
    if which == "gradient_norms":
        sums = kernel.gradient_norms(tensors, c)
    elif which == "update_moments, apply_update":
        sums = kernel.update_moments(tensors, c)
        kernel.apply_update(tensors, c, sign * factors)
    else:
        kernel.step(tensors, c, factors if which == "step, scaled" else None)
    return Outcome(sums, [torch.cat(column) for i, column in enumerate(tensors.columns) if i != 1])


PASSES = ("gradient_norms", "update_moments, apply_update", "step", "step, scaled")


def compare(
    kernel: Kernel, layout: str, formula: Formula, options: str, device: str = "cpu", dtypes: Dtypes = FP32
) -> dict[str, Outcome]:
    """Compare each pass with torch in float32 and in float64. Returns the kernel's results.

    Errors are in ulps of the sum of the absolute terms of a number, so that cancellation does not count. A result in 16
    bits may be off by half a unit of its last place in addition.
    """
    outcomes = {}
    for which in PASSES:
        reference, exact, terms = _expected(layout, formula, options, device, which, dtypes)
        tensors = make_tensors(layout, formula, None, device, rounded=dtypes)
        outcome = run(kernel, which, tensors, coefficients(formula, options))
        columns = (dtypes[0], *dtypes[2:])
        for i, (value, expected, exact_value, size) in enumerate(
            zip(outcome.columns, reference.columns, exact.columns, terms.columns, strict=True)
        ):
            valid = ~exact_value.isnan()
            assert value.dtype == columns[i]
            assert torch.equal(~value.isnan(), valid), which
            if valid.any():
                value, expected, exact_value, size = (t[valid].double() for t in (value, expected, exact_value, size))
                # The second of two passes reads rounded moments.
                read = columns[1 : len(outcome.columns)] if i == 0 and which == "update_moments, apply_update" else ()
                rounding = _half_ulps(columns[i]) + sum(_half_ulps(dtype) for dtype in read)
                assert _ulps(value, expected, size) <= ULPS + rounding, which
                assert _ulps(value, exact_value, size) <= max(2 * _ulps(expected, exact_value, size), 1) + rounding, (
                    which
                )
        if outcome.sums is not None:
            # Squares of float32 are exact in float64, so only the order differs. The direction itself is rounded.
            tolerances = (1e-12, 1e-12 if which == "gradient_norms" else 1e-6)
            for value, expected, rtol in zip(outcome.sums, reference.sums, tolerances, strict=True):
                torch.testing.assert_close(value, expected, rtol=rtol, atol=0.0)
        outcomes[which] = outcome
    return outcomes


@functools.cache
def _expected(
    layout: str, formula: Formula, options: str, device: str, which: str, dtypes: Dtypes
) -> tuple[Outcome, Outcome, Outcome]:
    """Torch in float32 and in float64, and the sum of the absolute terms."""
    c = coefficients(formula, options)
    single, double, positive = (
        make_tensors(layout, formula, d, device, rounded=dtypes) for d in (torch.float32, *[torch.float64] * 2)
    )
    for tensor in itertools.chain(*positive.columns):
        tensor.abs_()
    positive_terms = replace(
        c, grad=abs(c.grad), rate=-c.rate, metric=-c.metric
    )  # all terms are added, none subtracted
    terms = run(reference, which, positive, positive_terms, sign=-1)
    return run(reference, which, single, c), run(reference, which, double, c), terms


def _half_ulps(dtype: torch.dtype) -> float:
    """Half a unit in the last place of a 16-bit dtype, in those of float32."""
    return 0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2 * 2**23


def _ulps(a: Tensor, b: Tensor, size: Tensor) -> float:
    return ((a - b) / size).abs().max().item() * 2**23


def same_bits(a: Outcome, b: Outcome) -> bool:
    """Whether weights and moments, NaN included, are equal to the bit, on any device."""
    pairs = zip(a.columns, b.columns, strict=True)
    return all(torch.equal(x.cpu().view(torch.uint8), y.cpu().view(torch.uint8)) for x, y in pairs)
