"""Each kernel against the reference, and the kernels against each other."""

from __future__ import annotations

import fcntl
import importlib
import itertools
import logging
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bellwether.optimizers import SGD, Adam, AdamW, Lamb, Lars, RAdam, ShardedOptimizer, kernels
from bellwether.optimizers.kernels import build, cpu, reference
from bellwether.optimizers.kernels.coefficients import Coefficients, Formula
from bellwether.optimizers.kernels.interface import Kernel
from bellwether.optimizers.kernels.tensor_list import BlockTable, SegmentTable, TensorList
from bellwether.optimizers.shards.layout import ShardLayout, sqrt
from tests.optimizers.kernel_cases import CASES, PASSES, coefficients, compare, make_tensors, run, same_bits


@pytest.fixture(params=["cpu", "triton"])
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is for Linux")
        if not os.environ.get("TRITON_INTERPRET"):
            pytest.skip("this machine has a GPU, on which tests/gpu tests the kernel")
    return request.param


@pytest.fixture
def kernel(name: str) -> Kernel:
    found = importlib.import_module(f"bellwether.optimizers.kernels.{name}")
    found.prepare()
    return found


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # from NumPy, beyond the end of a block
@pytest.mark.parametrize(("layout", "formula", "options"), CASES)
def test_equals_the_reference(kernel: Kernel, layout: str, formula: Formula, options: str) -> None:
    outcomes = compare(kernel, layout, formula, options)
    if kernel is not cpu:
        for which, ours in outcomes.items():
            assert same_bits(ours, run(cpu, which, make_tensors(layout, formula), coefficients(formula, options)))


@pytest.mark.parametrize("which", PASSES)
def test_bits_are_reproducible(kernel: Kernel, which: str, threads: Callable[[int], None]) -> None:
    outcomes = []
    for count in (1, 2, 3):
        threads(count)
        outcomes.append(run(kernel, which, make_tensors("flat", "adam"), coefficients("adam", "all")))
    for other in outcomes[1:]:
        assert same_bits(outcomes[0], other)
        if other.sums is not None:
            assert torch.equal(outcomes[0].sums, other.sums)  # type: ignore[arg-type]


def test_cached_tables_work_with_other_tensors(kernel: Kernel) -> None:
    c, tables = coefficients("adam", "all"), {}
    for seed in (1, 2):
        ours, theirs = (make_tensors("fragments", "adam", seed=seed) for _ in range(2))
        ours = replace(ours, cache=tables)
        assert same_bits(run(kernel, "step", ours, c), run(kernel, "step", theirs, c))
    assert len(tables) == 1


def test_integer_coefficients(kernel: Kernel) -> None:
    c = coefficients("adam", "bare")
    ours, theirs = replace(c, beta1=0, numerator=1), replace(c, beta1=0.0, numerator=1.0)
    outcomes = [run(kernel, "step", make_tensors("fragments", "adam"), x) for x in (ours, theirs)]
    assert same_bits(*outcomes)


def test_blocks_beyond_int32() -> None:
    lengths = torch.tensor([5, 0, 2**33 + 1])
    index = torch.arange(3)
    layout = SegmentTable(
        torch.zeros(3, dtype=torch.int64), lengths.cumsum(0) - lengths, lengths, index, 3, None, False
    )
    blocks = BlockTable.of(layout, 2**20)
    assert blocks.first.tolist() == [0, 1, 1, 2**13 + 2]
    assert blocks.table[0].tolist() == [0, 0, 5, 0]
    assert blocks.table[1].tolist() == [0, 5, 2**20, 2]
    assert blocks.table[-1].tolist() == [0, 2**33 + 5, 1, 2]


@pytest.mark.parametrize("align", [1, 8])
def test_blocks_cover_each_segment_once_and_begin_aligned(align: int) -> None:
    segments = make_tensors("flat", "plain").segments
    blocks = BlockTable.of(segments, 64, align)
    rows = blocks.table.tolist()
    for i, (offset, length) in enumerate(zip(segments.offset.tolist(), segments.length.tolist(), strict=True)):
        own = rows[blocks.first[i] : blocks.first[i + 1]]
        assert [row[3] for row in own] == [i] * len(own)
        assert [e for _, begin, n, _ in own for e in range(begin, begin + n)] == list(range(offset, offset + length))
        assert all(0 < n <= 64 for _, _, n, _ in own)
        assert all(begin % align == 0 for _, begin, _, _ in own[1:])
    assert len(rows) == blocks.first[-1]


def test_ranges_of_blocks() -> None:
    lengths = torch.tensor([1_000_000_000, 0, 5])
    segments = SegmentTable(lengths * 0, lengths * 0, lengths, torch.arange(3), 3, None, False)
    blocks = BlockTable.of(segments, 2048)
    ranges, first = blocks.ranges(1024)
    assert first.tolist() == [0, 477, 477, 478]
    assert ranges.diff().max() == 1024
    assert [ranges[i] for i in first] == blocks.first.tolist()


@pytest.mark.parametrize("layout", ["flat", "tensors", "nothing"])
def test_sums_of_many_blocks_are_added_in_two_levels(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("bellwether.optimizers.kernels.triton")
    if triton.DEVICE != "cpu":
        pytest.skip("tests the arithmetic in Triton's interpreter")
    launches: list[str] = []
    add = triton._add
    monkeypatch.setattr(triton, "_add", {(n,): _counted(add[(n,)], launches) for n in range(1, 300)})
    c = coefficients("plain", "all")
    tensors = make_tensors(layout, "plain")
    for tensor in tensors.weights + tensors.grads:
        tensor.copy_(tensor.mul(8).round())  # sums of squares of integers are exact in any order
    expected = run(triton, "gradient_norms", tensors, c).sums
    one_level = len(launches)
    monkeypatch.setattr(triton, "_RANGE", 2)
    monkeypatch.setattr(triton, "_BLOCK", 64)
    found = run(triton, "gradient_norms", replace(tensors, cache={}), c).sums
    assert torch.equal(found, expected)  # type: ignore[arg-type]
    assert (one_level, len(launches) - one_level) == ((0, 0) if layout == "nothing" else (1, 2))


@pytest.mark.parametrize(
    ("numel", "before", "vectors"),
    [(4096, 0, [4]), (4096, 4, [4]), (4096, 1, [1]), (4099, 0, [4, 1]), (3, 0, [1]), (0, 0, [])],
)
def test_vectors_are_read_only_where_memory_is_aligned(
    numel: int, before: int, vectors: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``before``: elements of the gradient's storage before its first."""
    triton = pytest.importorskip("bellwether.optimizers.kernels.triton")
    launched: list[int] = []
    monkeypatch.setattr(triton, "_pass", _Recorded(launched))
    w, g = torch.ones(numel), torch.ones(before + numel)[before:]
    triton.step(
        TensorList([w], [g], {}, SegmentTable.of([ShardLayout.whole(w, "w")], True)), coefficients("plain", "bare")
    )
    assert launched == vectors


class _Recorded:
    """A kernel that is not run."""

    def __init__(self, launched: list[int]) -> None:
        self.launched = launched

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return lambda *args, VECTOR, **options: self.launched.append(VECTOR)


def test_only_one_rank_of_a_node_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant is first launched under a lock, and later without."""
    triton = pytest.importorskip("bellwether.optimizers.kernels.triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(triton, "DEVICE", "cuda")
    monkeypatch.setattr(triton, "_compiled", set())
    held = []
    for variant in ("a", "a", "b"):
        with triton._compiled_once_a_node(variant), open(build.folder() / "triton.lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held.append(False)
            except BlockingIOError:
                held.append(True)
    assert held == [True, False, True]


def _counted(function: Callable[..., None], launches: list[str]) -> Callable[..., None]:
    return lambda *args, **options: (launches.append("_add"), function(*args, **options))[1]


def _strided(shape: tuple[int, ...], order: tuple[int, ...]) -> torch.Tensor:
    """A dense tensor whose dimensions lie in memory in the given order, the outermost first."""
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return torch.zeros([shape[d] for d in order]).permute(inverse)


def test_density_is_computed_from_shape_and_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    """For every order of dimensions, with gaps and without, without a copy of the weights."""
    tensors = [
        _strided(shape, order)
        for shape in ((2, 3, 4), (1, 3, 1), (2, 1, 5))
        for order in itertools.permutations(range(3))
    ]
    dense = [(t, True) for t in tensors]
    gaps = [(t.transpose(0, 1)[..., ::2], False) for t in tensors if t.shape[2] > 2]
    expanded = [(torch.zeros(3, 1).expand(3, 4), False), (torch.zeros(4)[None].expand(3, 4), False)]
    for t, expected in [*dense, *gaps, *expanded]:
        assert (t.stride() == t.clone(memory_format=torch.preserve_format).stride()) == expected
    monkeypatch.setattr(torch.Tensor, "clone", None)
    for t, expected in [*dense, *gaps, *expanded]:
        tensors_of_one = TensorList([t], [t], {"exp_avg": [t]}, make_tensors("nothing", "plain").segments)
        assert tensors_of_one.is_flat() == expected
    first, second = _strided((2, 3, 4), (1, 0, 2)), _strided((2, 3, 4), (0, 1, 2))
    assert not TensorList([first], [second], {}, make_tensors("nothing", "plain").segments).is_flat()


MAKE: dict[str, Callable[..., ShardedOptimizer]] = {
    "lamb": Lamb,
    "lamb-prenormalize": lambda p, **k: Lamb(p, prenormalize=True, eps=0.01, **k),
    "lars": Lars,
    "sgd-nesterov": lambda p, **k: SGD(p, momentum=0.9, nesterov=True, weight_decay=0.1, **k),
    "adam-amsgrad": lambda p, **k: Adam(p, amsgrad=True, weight_decay=0.1, **k),
    "adamw": lambda p, **k: AdamW(p, weight_decay=0.1, **k),
    "adamw-prox-metric": lambda p, **k: AdamW(p, weight_decay=0.1, weight_decay_mode="prox-metric", **k),
    "radam": RAdam,
}


def _trained(make: Callable[..., ShardedOptimizer], name: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 7), (), (1,), (129, 17), (8, 3, 3, 3), (0, 2)]
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    values[3] = values[3].t()
    values[4] = values[4].to(memory_format=torch.channels_last)
    params = [torch.nn.Parameter(value) for value in values]
    optimizer = make(params, lr=0.02, kernel=name)
    for _ in range(10):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)  # contiguous, even if the parameter is not
        optimizer.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize("optimizer", MAKE)
def test_ten_steps(optimizer: str, name: str) -> None:
    for ours, theirs in zip(_trained(MAKE[optimizer], name), _trained(MAKE[optimizer], "reference"), strict=True):
        assert ours.stride() == theirs.stride()
        # The error of a step is some ulps of the weight or of the step, 1e-7 each; ten steps may add up.
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_auto_chooses_by_device_and_dtype() -> None:
    assert kernels.choose("auto", make_tensors("flat", "adam")) is cpu
    assert kernels.choose("auto", make_tensors("flat", "adam", torch.bfloat16)) is cpu
    assert kernels.choose("auto", make_tensors("flat", "adam", torch.float64)) is reference
    assert kernels.choose("auto", make_tensors("flat", "adam", device="meta")) is reference
    assert kernels.choose("reference", make_tensors("flat", "adam")) is reference


def test_unsupported_tensors_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"not float64 on cpu.*; write kernel='auto'"):
        kernels.choose(name, make_tensors("flat", "adam", torch.float64))
    with pytest.raises(TypeError, match="float32 on meta"):
        kernels.choose(name, make_tensors("flat", "adam", device="meta"))
    gap = TensorList([torch.zeros(4, 4)[:, ::2]], [torch.zeros(4, 2)], {}, make_tensors("flat", "plain").segments)
    with pytest.raises(TypeError, match="dense"):
        kernels.choose(name, gap)


def test_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of auto, reference, cpu, triton"):
        Lamb([torch.nn.Parameter(torch.ones(1))], kernel="cuda")


def test_auto_falls_back_without_triton(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """`auto` selects the triton kernel for CUDA tensors."""
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "bellwether.optimizers.kernels.triton", raising=False)
    monkeypatch.setitem(kernels._COMPILED, "cpu", "triton")
    kernels._load.cache_clear(), kernels._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "bellwether.optimizers"):
        for _ in range(2):
            assert kernels.choose("auto", make_tensors("flat", "adam")) is reference
    assert len(caplog.records) == 1
    with pytest.raises(RuntimeError, match="kernel='triton' cannot run here"):
        kernels.check("triton")
    kernels._load.cache_clear()


def _python(script: str, **environment: str) -> str:
    """Run a script with Triton's compiler instead of its interpreter."""
    environment_without_interpreter = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment_without_interpreter | environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.process
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without a GPU")
def test_triton_is_imported_late_and_reports_a_missing_gpu() -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")
    output = _python("""
        import sys, torch
        from bellwether.optimizers import Lamb
        imported = "triton" in sys.modules  # torch's own optimizers import it in their constructors
        weight = torch.nn.Parameter(torch.ones(3))
        weight.grad = torch.ones(3)
        Lamb([weight]).step()
        print(imported or "bellwether.optimizers.kernels.triton" in sys.modules)
        try:
            Lamb([weight], kernel="triton")
        except RuntimeError as error:
            print(error)
    """)
    assert output.startswith("False\nkernel='triton' cannot run here: there is no GPU; with TRITON_INTERPRET=1")


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("bounds", [(0.0, math.inf), (0.5, 1.5)])
def test_fused_step_equals_two_passes_bitwise(threads: int, bounds: tuple[float, float]) -> None:
    """Small and large segments, some processed together; weights and a gradient that are 0."""
    sizes = [5, 300_000, 0, 16384, 16387, 1, 70_000, 40_000, 33]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(n, generator=generator) for n in sizes]
    weights[3].zero_()
    grads = [torch.randn(n, generator=generator) for n in sizes]
    layout = SegmentTable.of([ShardLayout.whole(w, str(i)) for i, w in enumerate(weights)], by_parameter=True)
    c = Coefficients("adam", rate=0.1, beta1=0.9, grad_weight=0.1, beta2=0.999, eps=1e-6, coupled_decay=0.01)
    grads[4].zero_()
    outcomes = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for at_once in (True, False):
            w = [x.clone() for x in weights]
            moments = [[x.clone() for x in weights], [x.square() for x in weights]]
            moments[0][4].zero_()
            w[4].zero_()
            tensors = TensorList(w, grads, dict(zip(("exp_avg", "exp_avg_sq"), moments, strict=True)), layout)
            if at_once:
                ratios = cpu.fused_step(tensors, c, 0.1, bounds)
            else:
                weight, update = sqrt(cpu.update_moments(tensors, c))
                ratios = torch.where((weight > 0) & (update > 0), (weight / update).clamp(*bounds), 1.0)
                cpu.apply_update(tensors, c, ratios * 0.1)
            outcomes.append((ratios, [*w, *moments[0], *moments[1]]))
    finally:
        torch.set_num_threads(before)
    (some, tensors), (others, more) = outcomes
    assert torch.equal(some, others)
    assert some[3] == some[4] == some[2] == 1
    assert all(torch.equal(a, b) for a, b in zip(tensors, more, strict=True))
