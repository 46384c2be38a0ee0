"""The tests of tests/gpu; on a CPU those of the same kernels in Triton's interpreter."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from scripts.gpu_suite.context import Context

ROOT = Path(__file__).resolve().parents[2]


def run(context: Context) -> None:
    few = ["tests/optimizers/test_kernels.py", "-k", "triton and cached_tables"]
    where = few if context.dry else ["tests/gpu"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "-x" if context.dry else "--maxfail=20",
    ]
    ended = subprocess.run(
        [*command, *where], cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, context.left - 2)
    )
    print(ended.stdout[-6000:], ended.stderr[-2000:])
    context.check(*verdict(ended.returncode, ended.stdout))
    for line in re.findall(r"^(?:FAILED|ERROR) .*", ended.stdout, re.M)[:20]:
        context.note(line[:300])


def verdict(status: int, output: str) -> tuple[str, bool, str]:
    """pytest's last line, and whether tests ran and none failed.

    >>> verdict(0, "....\\n4 passed, 1 skipped in 3.1s")
    ('pytest', True, '4 passed, 1 skipped in 3.1s')
    >>> verdict(0, "ss\\n2 skipped in 0.1s")[1], verdict(1, "1 failed, 3 passed in 2s")[1]
    (False, False)
    """
    last = (output.strip().splitlines() or ["no output"])[-1].strip("= ")
    return "pytest", status == 0 and re.search(r"\b[1-9]\d* passed", last) is not None, last
