"""scripts/bench_train runs and writes its tables; its times are not tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench_train.contestants import CONTESTANTS

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.full
@pytest.mark.process
def test_contestants_train_with_the_same_losses(tmp_path: Path) -> None:
    page, file = tmp_path / "page.md", tmp_path / "rounds.json"
    page.write_text("# Training\n")
    command = [
        sys.executable,
        "-m",
        "scripts.bench_train",
        "--quick",
        "--rounds",
        "2",
        "--page",
        str(page),
        "--json",
        str(file),
    ]
    ended = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = json.loads(file.read_text())["results"]
    available = {one.name for one in CONTESTANTS if not one.problem()}
    assert {"Bellwether", "torch DDP", "HF Trainer", "accelerate"} <= available
    for result in results:
        if result["contestant"] not in available:
            assert result["problem"].startswith("`import ")
            continue
        assert not result["problem"], result
        assert len(result["wall"]) == len(result["cpu"]) == 2
        assert result["operations"] > 100
    text = page.read_text()
    assert "Everyone's defaults" in text
    assert "other losses" not in text
    assert "other update" not in text
