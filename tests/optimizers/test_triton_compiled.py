"""The Triton kernels compiled for GPUs, on a machine without one: vectors, registers, and IEEE arithmetic."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bellwether.optimizers.kernels.coefficients import FORMULAS
from tests.tiers import covering

triton = pytest.importorskip("triton", reason="Triton is for Linux")

# Compiles variants of the kernel for one kind of GPU, and has ptxas report registers and spills.
SCRIPT = """
    import itertools, json, re, subprocess, sys, tempfile
    import triton, triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile
    from bellwether.optimizers.kernels import triton as kernel

    names = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}
    capability, formula, dtypes = int(sys.argv[1]), sys.argv[2], [names[name] for name in sys.argv[3].split("-")]
    dtypes += [dtypes[-1]] * (5 - len(dtypes))
    width = 128 // max(dtype.primitive_bitwidth for dtype in dtypes)
    adaptive = formula in ("adam", "amsgrad")
    passes = [("update_moments", False, False)]
    passes += [(which, factors, metric) for which, factors in (("apply_update", True), ("step", False), ("step", True))
               for metric in ({False, adaptive})]
    if formula == "plain":
        passes.append(("gradient_norms", False, False))  # equal for all formulas
    passes = [p for p in passes if sys.argv[5] in (p[0], "all")]
    pointers = {"blocks": "*i64", "addresses": "*i64", "factors": "*fp64", "sums": "*fp64"}
    for (which, factors, metric), vector in itertools.product(passes, (width, 1)):
        fixed = {"PASS": which, "FORMULA": formula, "FACTORS": factors, "METRIC": metric, "COLUMNS": 5, "BLOCK": kernel._BLOCK,
                 "VECTOR": vector, **dict(zip(("W", "G", "M", "V", "TOP"), dtypes))}
        signature = {n: "constexpr" if n in fixed else pointers.get(n, "fp32") for n in kernel._pass.arg_names}
        source = ASTSource(kernel._pass, signature=signature, constexprs=fixed)
        code = compile(source, GPUTarget("cuda", capability, 32), {"enable_fp_fusion": False, "num_warps": kernel.warps(vector)}).asm["ptx"]
        with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
            file.write(code)
            file.flush()
            target = re.search(r"\\.target (\\w+)", code)[1]
            report = subprocess.run([sys.argv[4], "-v", f"-arch={target}", file.name, "-o", "/dev/null"],
                                    capture_output=True, text=True, check=True).stderr
        print(json.dumps({
            "pass": which, "factors": factors, "metric": metric, "vector": vector, "code": code,
            "registers": int(re.search(r"Used (\\d+) registers", report)[1]),
            "spills": [int(n) for n in re.findall(r"(\\d+) bytes spill", report)],
        }))
"""

DTYPES = ("fp32-fp32-fp32", "bf16-bf16-fp32", "fp16-fp16-fp32", "bf16-bf16-bf16")
SOME = [(80, "adam", "fp32-fp32-fp32", "update_moments"), (90, "amsgrad", "bf16-bf16-fp32", "update_moments")]


def compiled(tmp_path: Path, capability: int, formula: str, dtypes: str, passes: str) -> Iterator[dict[str, Any]]:
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(capability), formula, dtypes, str(ptxas), passes],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    yield from map(json.loads, ended.stdout.splitlines())


@covering(lambda passes: passes != "all")
@pytest.mark.process
@pytest.mark.parametrize(
    ("capability", "formula", "dtypes", "passes"), [*SOME, *itertools.product((80, 90), FORMULAS, DTYPES, ("all",))]
)
def test_compiled_code(tmp_path: Path, capability: int, formula: str, dtypes: str, passes: str) -> None:
    """No spills, vector accesses alone where memory is aligned, IEEE division and square root, no contraction."""
    count = 0
    for variant in compiled(tmp_path, capability, formula, dtypes, passes):
        count += 1
        code, title = variant.pop("code"), str(variant)
        assert sum(variant["spills"]) == 0, title
        assert variant["registers"] <= (128 if passes == "all" or variant["vector"] == 1 else 80), title
        for wrong in ("fma.", ".ftz", ".approx", "div.full", " atom.", " red."):
            assert wrong not in code, title
        if formula in ("adam", "amsgrad") and variant["pass"] != "gradient_norms":
            assert "div.rn.f32" in code
            assert "sqrt.rn.f32" in code
        widths = accesses(code)
        if variant["vector"] == 1:
            assert not widths & {8, 16}, title
        elif len(set(dtypes.split("-"))) == 1:
            assert widths == {16}, title
        else:  # four elements of each
            assert 8 in widths, title
            assert widths <= {8, 16}, title
    assert count >= (8 if passes == "all" else 2)


def accesses(code: str) -> set[int]:
    """Bytes of each load and store of the tensors' elements. Tables are read as single 64-bit numbers, sums written so."""
    found = set()
    for line in code.splitlines():
        words = line.replace("@", " @ ").split()
        for word in words:
            if word.startswith(("ld.global", "st.global")) and not word.endswith(".b64"):
                parts = word.split(".")
                lanes = next((int(part[1:]) for part in parts if part in ("v2", "v4", "v8")), 1)
                found.add(lanes * int(parts[-1][1:]) // 8)
    return found
