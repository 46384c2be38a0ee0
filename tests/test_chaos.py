"""scripts/chaos.py: a run survives random faults, and one that does not is noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import save_file

from scripts.chaos import Record, table
from scripts.chaos_faults import FAULTS, Machine, mode, skipped
from scripts.chaos_subject import Subject, differences

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.process
@pytest.mark.full
def test_run_ends_as_the_undisturbed_one_after_twenty_faults(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "chaos.py"), "--faults", "20", "--seed", "1"]
    ended = subprocess.run(
        [*command, "--keep", str(tmp_path / "kept")], cwd=ROOT, capture_output=True, text=True, timeout=2400
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "bit by bit, with every step logged once" in ended.stdout


def finished(disk: Path, name: str, **changes: Any) -> Subject:
    """A run directory as a run of three steps leaves it."""
    run = disk / "runs" / name
    weights = np.arange(4, dtype=np.float32) + changes.get("weights", 0.0)
    for file in ("checkpoints/step-00000003/rank-00000.safetensors", "export/model.safetensors"):
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        save_file({"weight|a|0": weights}, run / file)
    losses = changes.get("losses", [1.0, 0.5, 0.25])
    lines = [{"event": "train", "step": step, "loss": loss} for step, loss in zip((1, 2, 3), losses, strict=False)]
    lines += [{"event": "checkpoint", "step": 3, "samples": 24, "path": "checkpoints/step-00000003"}]
    lines += changes.get("more", [])
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "tr')
    return cast(Subject, SimpleNamespace(run=run, checkpoints=lambda: sorted((run / "checkpoints").iterdir())))


DIFFERENT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "the same": ({}, []),
    "a weight": ({"weights": 1e-6}, ["1 of 1 tensors differ", "1 of 1 tensors differ"]),
    "a loss": ({"losses": [1.0, 0.5, 0.2500001]}, ["train lines differ at steps [3]"]),
    "a missing step": ({"losses": [1.0, 0.5]}, ["missing at [3]"]),
    "a checkpoint at a signal": (
        {"more": [{"event": "checkpoint", "step": 2, "samples": 16, "path": "checkpoints/step-00000002"}]},
        [],
    ),
    "another checkpoint": (
        {"more": [{"event": "checkpoint", "step": 3, "samples": 25, "path": "checkpoints/step-00000003"}]},
        ["checkpoint lines differ at steps [3]"],
    ),
    "a step twice": ({"more": [{"event": "train", "step": 2, "loss": 0.5}]}, ["twice at steps [2]"]),
}


@pytest.mark.parametrize(("changes", "expected"), DIFFERENT.values(), ids=DIFFERENT)
def test_differences_are_found(tmp_path: Path, changes: dict[str, Any], expected: list[str]) -> None:
    found = differences(finished(tmp_path, "disturbed", **changes), finished(tmp_path, "undisturbed"))
    assert len(found) == len(expected)
    assert all(part in text for part, text in zip(expected, found, strict=True)), found


def test_faults_without_means_are_named(tmp_path: Path) -> None:
    bare = Machine(tmp_path, has_own_disk=False, has_nodes=False, clock=None)
    skips = skipped(bare)
    assert set(skips) == {"link", "clock"}
    assert {mode(kind, bare) for kind in FAULTS if kind not in skips} == {"local"}
    text = table([Record("rank", "step", outcome="restarted", lost=2.0)], skips, 60)
    assert "| link | 0 | skipped: no network namespaces | | |" in text
    assert "| rank | 1 | 1 restarted | 2.0 | 2.0 |" in text
