"""Weights, gradients and moments of 16 bits in the compiled kernels: computed in float32, rounded to nearest."""

from __future__ import annotations

import importlib
import itertools
import os
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bellwether.optimizers import Adam, Lamb, kernels
from bellwether.optimizers.kernels import cpu
from bellwether.optimizers.kernels.coefficients import Coefficients, Formula
from bellwether.optimizers.kernels.interface import Kernel
from bellwether.optimizers.kernels.tensor_list import DTYPES, SegmentTable, TensorList
from bellwether.optimizers.shards.layout import ShardLayout
from tests.optimizers.kernel_cases import (
    FORMULAS,
    PASSES,
    Dtypes,
    Outcome,
    coefficients,
    compare,
    make_tensors,
    run,
    same_bits,
)
from tests.tiers import covering

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16

# (weights, gradients, moments), each of any dtype, and some lists whose moments have different ones.
COMBINATIONS: list[Dtypes] = [(w, g, m, m, m) for w, g, m in itertools.product(DTYPES, repeat=3)]
COMBINATIONS += [(BF16, BF16, BF16, FP32, FP32), (FP16, FP32, FP32, BF16, FP16), (FP32, BF16, FP16, FP32, BF16)]
# Triton's interpreter is slow.
SOME: list[Dtypes] = [(BF16, BF16, FP32, FP32, FP32), (FP16, BF16, BF16, BF16, BF16), (FP32, FP16, FP16, FP32, BF16)]


def named(dtypes: Dtypes) -> str:
    return "-".join({FP32: "fp32", BF16: "bf16", FP16: "fp16"}[dtype] for dtype in dtypes)


CASES = [("cpu", dtypes) for dtypes in COMBINATIONS] + [("triton", dtypes) for dtypes in SOME]
every_case = pytest.mark.parametrize(
    ("name", "dtypes"), CASES, ids=[f"{name}-{named(dtypes)}" for name, dtypes in CASES]
)


def load(name: str) -> Kernel:
    if name == "triton":
        pytest.importorskip("triton", reason="Triton is for Linux")
        if not os.environ.get("TRITON_INTERPRET"):
            pytest.skip("this machine has a GPU, on which tests/gpu tests the kernel")
    found = importlib.import_module(f"bellwether.optimizers.kernels.{name}")
    found.prepare()
    return found


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # from NumPy, beyond the end of a block
@covering(lambda name, formula, dtypes: dtypes == SOME[0] and (name == "cpu" or formula == "amsgrad"))
@every_case
@pytest.mark.parametrize("formula", FORMULAS)
def test_equals_the_reference_to_the_rounding_of_the_dtype(name: str, formula: Formula, dtypes: Dtypes) -> None:
    kernel = load(name)
    for which, ours in compare(kernel, "fragments", formula, "all", dtypes=dtypes).items():
        if kernel is not cpu:
            tensors = make_tensors("fragments", formula, None, rounded=dtypes)
            assert same_bits(ours, run(cpu, which, tensors, coefficients(formula, "all")))


@covering(lambda dtypes: dtypes in SOME)
@pytest.mark.parametrize("dtypes", [*COMBINATIONS, *SOME[1:]], ids=named)
@pytest.mark.parametrize("formula", FORMULAS)
def test_equals_the_rounded_float32_result(formula: Formula, dtypes: Dtypes) -> None:
    """To the bit, sums included, in blocks that are converted in several parts."""
    c = coefficients(formula, "all")
    for layout, which in itertools.product(("flat", "tensors"), PASSES):
        if which == "update_moments, apply_update":  # the second pass reads rounded moments
            continue
        ours = run(cpu, which, make_tensors(layout, formula, None, rounded=dtypes), c)
        wide = run(cpu, which, make_tensors(layout, formula, rounded=dtypes), c)
        assert same_bits(_numbers(ours), _numbers(_rounded(wide, dtypes)))
        assert ours.sums is None or torch.equal(ours.sums, wide.sums)  # type: ignore[arg-type]


def _rounded(outcome: Outcome, dtypes: Dtypes) -> Outcome:
    columns = zip(outcome.columns, (dtypes[0], *dtypes[2:]), strict=False)
    return replace(outcome, columns=[column.to(dtype) for column, dtype in columns])


def _numbers(outcome: Outcome) -> Outcome:
    """Without the padding, which is NaN."""
    return replace(outcome, columns=[column.nan_to_num() for column in outcome.columns])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # from NumPy, in which Triton's interpreter computes
@pytest.mark.parametrize("name", ["cpu", "triton"])
@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_conversions_are_those_of_torch(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 16-bit number to float32, and back from float32 around every one of them, with infinities, NaN and subnormals."""
    if name == "triton":
        monkeypatch.setattr(load(name), "_BLOCK", 1 << 17)  # its interpreter takes as long for a block of any size
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32)
    narrow = halves.to(torch.int16).view(dtype)
    assert _copied(name, narrow, FP32).equal(_without_nan(narrow.float()))
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0xFFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x3001])
    wide = ((halves[:, None] << 16) + low[None, :].int()).flatten().view(FP32)
    assert _copied(name, wide, dtype).equal(_without_nan(wide.to(dtype)))


def _copied(name: str, source: Tensor, dtype: torch.dtype) -> Tensor:
    """A kernel's conversion: the momentum of a gradient, without a decay."""
    target = torch.zeros(len(source), dtype=dtype)
    segments = SegmentTable.of([ShardLayout.whole(source, "a")], by_parameter=True)
    tensors = TensorList([torch.zeros(len(source))], [source], {"momentum_buffer": [target]}, segments)
    load(name).step(tensors, Coefficients("momentum", rate=0.0))
    return _without_nan(target)


def _without_nan(x: Tensor) -> Tensor:
    return torch.where(x.isnan(), torch.tensor(-7.0, dtype=x.dtype), x)


def test_dtypes_within_a_column_must_be_equal() -> None:
    tensors = make_tensors("tensors", "adam")
    tensors.states["exp_avg"][1] = tensors.states["exp_avg"][1].bfloat16()
    with pytest.raises(TypeError, match="one dtype for all weights, gradients or moments of a name, on the CPU, not"):
        kernels.choose("cpu", tensors)


@pytest.mark.parametrize("kind", [Adam, Lamb])
@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_16_bit_weights_are_updated_by_the_compiled_kernel(kind: type, dtype: torch.dtype, kernel: str) -> None:
    """One step from equal weights is one rounding from the step of float32 weights."""
    start = torch.randn(64, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    g = torch.randn(64, 33, generator=torch.Generator().manual_seed(1)).to(dtype)
    narrow, wide = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    for p in (narrow, wide):
        p.grad = g.to(p.dtype)
        optimizer = kind([p], lr=0.1, weight_decay=0.01, kernel=kernel)
        optimizer.step()
    torch.testing.assert_close(narrow.float(), wide, rtol=torch.finfo(dtype).eps / 2, atol=1e-6)


@pytest.mark.skipif(
    not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has gradients of the weights' dtype alone"
)
def test_gradients_of_different_dtypes_are_updated_apart() -> None:
    params = [torch.nn.Parameter(torch.full((5,), 2.0)) for _ in range(3)]
    for p, dtype in zip(params, DTYPES, strict=True):
        p.grad_dtype = dtype  # type: ignore[attr-defined]
        p.grad = torch.full((5,), 0.5, dtype=dtype)
    Lamb(params, lr=0.1, kernel="cpu").step()
    assert params[0].equal(params[1])
    assert params[0].equal(params[2])
    assert params[0][0] < 2
