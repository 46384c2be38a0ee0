"""scripts/bench_optimizers.py runs and prints a table; its times are not tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bellwether.optimizers.kernels import NAMES

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.full
@pytest.mark.process
def test_the_benchmark_of_optimizers_fills_its_table(tmp_path: Path) -> None:
    files = {"--json": tmp_path / "times.json", "--markdown": tmp_path / "table.md"}
    options = ["--device", "cpu", "--size", "tiny", "--rounds", "2", "--no-peers"]
    command = [sys.executable, str(ROOT / "scripts" / "bench_optimizers.py"), *options]
    for option, file in files.items():
        command += [option, str(file)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # several threads would wait for each other on a busy machine
    ended = subprocess.run(command, cwd=ROOT, env=one_thread, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "| Lamb " in ended.stdout
    assert ended.stdout in files["--markdown"].read_text()

    found = json.loads(files["--json"].read_text())
    settings = list(dict.fromkeys(row["setting"] for row in found["rows"]))
    assert len(settings) == 6
    all_ran = [row for row in found["rows"] if "problem" not in row]
    ran = {(row["optimizer"], row["version"]): row for row in all_ran if row["setting"] == settings[1]}
    kernels = [name for name in NAMES if name in ("reference", "cpu")]
    wanted = {("AdamW", f"torch, {form}") for form in ("fused", "foreach", "loop")}
    wanted |= {(name, f"Bellwether, {k}") for name in ("AdamW", "RAdam", "Lamb", "Lars") for k in kernels}
    assert wanted < set(ran)
    assert all(len(row["all_seconds"]) == 2 for row in all_ran)
    assert all(
        any(row["setting"] == setting and row["version"] == "Bellwether, cpu" for row in all_ran)
        for setting in settings[:-1]
    )
    of_matrices = {(row["optimizer"], row["version"]) for row in all_ran if row["setting"] == settings[-1]}
    assert {("Muon", "torch"), ("Muon", "Bellwether, bf16"), ("Muon", "Bellwether, fp32")} < of_matrices
    left_out = {row["version"] for row in found["rows"] if "problem" in row}
    assert left_out == {"timm", "pytorch-optimizer"}
    # AdamW needs its two moments and next to nothing more; Lars has one moment, so 4 bytes an element less.
    adamw, lars = (ran[name, "Bellwether, cpu"] for name in ("AdamW", "Lars"))
    assert 0 <= adamw["extra_bytes"] < 0.5 * adamw["elements"]
    assert -4 * lars["elements"] <= lars["extra_bytes"] < -3.5 * lars["elements"]
