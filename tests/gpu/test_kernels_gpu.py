"""The GPU kernel on a GPU: equal to the reference, and to the bit to the CPU kernel."""

from __future__ import annotations

import pytest
import torch

from bellwether.optimizers import AdamW, Lamb, kernels
from bellwether.optimizers.kernels import cpu
from bellwether.optimizers.kernels.coefficients import Formula
from bellwether.optimizers.kernels.interface import Kernel
from bellwether.optimizers.kernels.tensor_list import DTYPES, SegmentTable, TensorList
from bellwether.optimizers.shards.layout import ParameterInfo, ParameterSlice, ShardLayout
from tests.optimizers import coefficients_in_torch
from tests.optimizers.kernel_cases import CASES, PASSES, coefficients, compare, make_tensors, run, same_bits

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.fixture
def triton() -> Kernel:
    found = kernels.choose("auto", make_tensors("flat", "adam", device="cuda"))
    assert found.__name__ == "bellwether.optimizers.kernels.triton"  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(("layout", "formula", "options"), CASES)
def test_equals_the_reference(triton: Kernel, layout: str, formula: Formula, options: str) -> None:
    for which, outcome in compare(triton, layout, formula, options, "cuda").items():
        assert same_bits(outcome, run(cpu, which, make_tensors(layout, formula), coefficients(formula, options)))


@pytest.mark.parametrize("weights", DTYPES)
@pytest.mark.parametrize("moments", DTYPES)
@pytest.mark.parametrize("layout", ["flat", "tensors"])
def test_16_bit_tensors_equal_the_cpu_kernel_to_the_bit(
    triton: Kernel, layout: str, weights: torch.dtype, moments: torch.dtype
) -> None:
    dtypes = (weights, torch.bfloat16, moments, moments, moments)
    for which, outcome in compare(triton, layout, "amsgrad", "all", "cuda", dtypes).items():
        tensors = make_tensors(layout, "amsgrad", None, rounded=dtypes)
        assert same_bits(outcome, run(cpu, which, tensors, coefficients("amsgrad", "all")))


@pytest.mark.parametrize("options", [{"stochastic_rounding": True}, {"kahan_sum": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_equals_that_of_the_cpu_to_the_bit(dtype: torch.dtype, options: dict[str, bool]) -> None:
    generator = torch.Generator().manual_seed(0)
    start, g = (torch.randn(129, 65, generator=generator).to(dtype) for _ in range(2))
    params = [torch.nn.Parameter(start.to(device, copy=True)) for device in ("cpu", "cuda")]
    for p in params:
        optimizer = AdamW([("w", p)], lr=1e-3, **options)
        for _ in range(5):
            p.grad = g.to(p.device)
            optimizer.step()
    assert params[0].equal(params[1].cpu())


@pytest.mark.parametrize("which", PASSES)
def test_same_bits_every_time_and_no_wait(triton: Kernel, which: str) -> None:
    outcomes = []
    for _ in range(3):
        batch = make_tensors("flat", "adam", device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            outcomes.append(run(triton, which, batch, coefficients("adam", "all")))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for other in outcomes[1:]:
        assert same_bits(outcomes[0], other)
        if other.sums is not None:
            assert torch.equal(outcomes[0].sums, other.sums)  # type: ignore[arg-type]


def test_one_large_shard(triton: Kernel) -> None:
    """More elements than an int32 counts, where the memory for four such tensors is there."""
    length = 2**31 + 4099 if torch.cuda.mem_get_info()[0] > 60 * 2**30 else 2**26 + 4099
    names = (ParameterInfo("a", (length - 2053,)), ParameterInfo("b", (2053,)))
    slices = (ParameterSlice(0, 0, 0, length - 2053), ParameterSlice(1, length - 2053, 0, 2053))
    columns = [torch.full((length,), value, device="cuda") for value in (1.0, 0.5, 0.25, 0.125)]
    layout = SegmentTable.of([ShardLayout(columns[0], names, slices, None)], by_parameter=True)
    c = coefficients("adam", "bare")
    batch = TensorList([columns[0]], [columns[1]], {"exp_avg": [columns[2]], "exp_avg_sq": [columns[3]]}, layout)
    sums = triton.gradient_norms(batch, c)
    assert sums.tolist() == [[length - 2053, 2053], [(length - 2053) / 4, 2053 / 4]]  # exact, as all are powers of two
    few = [[column[:8].clone()] for column in columns]
    states = {"exp_avg": few[2], "exp_avg_sq": few[3]}
    few_tensors = TensorList(few[0], few[1], states, SegmentTable.of([ShardLayout.whole(few[0][0], "few")], True))
    coefficients_in_torch.step(few_tensors, c)
    triton.step(batch, c)
    weights = columns[0]
    assert weights.min() == weights.max()
    torch.testing.assert_close(weights[-8:], few[0][0])


def test_trains_on_gpu() -> None:
    def trained(name: str) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(s, generator=generator).cuda()) for s in ((129, 17), (3,), ())]
        optimizer = Lamb(params, lr=0.02, kernel=name)
        for _ in range(10):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator).cuda()
            optimizer.step()
        return params

    for outcome, expected in zip(trained("triton"), trained("reference"), strict=True):
        torch.testing.assert_close(outcome, expected, rtol=1e-6, atol=1e-6)
