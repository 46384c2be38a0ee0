"""The facts that one node reports, and time limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bellwether.launcher.doctor import (
    gather,
    protocol,
    quick,
    software_probe,
    system_probe,
    timeout,
)
from bellwether.launcher.doctor.result import RED, YELLOW
from bellwether.optimizers.kernels import build
from bellwether.trainer import build_locks
from bellwether.trainer.data.text import TextData

ROOT = Path(__file__).parents[3]


def test_locks_compiler_and_cache_are_those_that_the_trainer_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, root in (("TORCH_EXTENSIONS_DIR", tmp_path), ("XDG_CACHE_HOME", tmp_path / "torch_extensions")):
        with monkeypatch.context() as patch:
            patch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
            patch.setenv(variable, str(tmp_path))
            for folder in ("plain", "py311_cpu/nested"):
                (root / folder).mkdir(parents=True)
                (root / folder / "lock").touch()
                os.utime(root / folder / "lock", (time.time() - 500, time.time() - 500))
            found = software_probe.locks()
            assert {lock["path"] for lock in found} == {str(path) for path in build_locks.locks()}
            assert len(found) == 2
            assert all(500 <= lock["age_s"] < 900 and lock["builders"] == 0 for lock in found)
    for name, value in (("PATH", None), ("CXX", "g++"), ("CXX", "no-such-compiler")):
        with monkeypatch.context() as patch:
            if value is not None:
                patch.setenv(name, value)
            assert software_probe.find_compiler() == build._compiler()
    assert TextData.model_fields["cache"].default == system_probe.CACHE


@pytest.mark.process
def test_hanging_calls_and_commands_are_abandoned() -> None:
    with pytest.raises(TimeoutError, match="no answer in 0 s"):
        timeout.run_with_timeout(0.05, lambda: time.sleep(5))
    with pytest.raises(OSError, match="gone"):
        timeout.run_with_timeout(5, lambda: (_ for _ in ()).throw(OSError("gone")))
    answers = gather.gather({"srun": ["sleep", "60"], "other": ["no-such-command"]}, os.environ, 2, 0.3)
    assert dict(answers.launcher_errors) == {
        "srun": "not done in 0 s",
        "other": "no-such-command: No such file or directory",
    }
    stuck = "import time\nfrom bellwether.launcher.doctor.protocol import Reporter\nReporter(1).begin('thinking', 0.2)\ntime.sleep(60)"
    done = subprocess.run([sys.executable, "-c", stuck], cwd=ROOT, capture_output=True, text=True, timeout=50)
    (failure,) = protocol.parse(done.stdout)
    assert (failure["rank"], failure["stage"], failure["error"]) == (1, "thinking", "not done in 0 s")


@pytest.mark.parametrize(
    ("given", "visible", "shown", "problem"),
    [
        ("0,1", "0,1", 2, False),
        ("0,1", "0,1", 1, True),
        ("0,1,2,3", "MIG-a,MIG-b,MIG-c,MIG-d", 1, False),  # nvidia-smi lists the GPU, SLURM its instances
        ("0,1,2,3", "MIG-a", 0, True),
        ("", "", 0, False),
    ],
)
def test_gpus_of_a_node_are_those_that_slurm_gives(
    monkeypatch: pytest.MonkeyPatch, given: str, visible: str, shown: int, problem: bool
) -> None:
    monkeypatch.setenv("SLURM_STEP_GPUS", given)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert bool(quick.gpus({"count": shown}, quick._given_gpus())) == problem


@pytest.mark.process
def test_quick_checks_import_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import json, sys\nfrom dataclasses import asdict\nfrom bellwether.launcher.doctor import quick_checks\n"
        "rows = [asdict(row) for row in quick_checks(sys.argv[1], sys.argv[2])]\n"
        "heavy = {'torch', 'deepspeed', 'numpy', 'transformers', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\nprint(json.dumps(rows))"
    )
    (tmp_path / "ext/fused").mkdir(parents=True)
    (tmp_path / "ext/fused/lock").touch()
    os.utime(tmp_path / "ext/fused/lock", (0, 0))

    def states(on: str, runs: str, **environment: str) -> dict[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", program, on, runs], cwd=ROOT, env={**os.environ, **environment}, capture_output=True,
            text=True, timeout=50,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return {row["check"]: row["state"] for row in json.loads(done.stdout)}

    fine = states("local", str(tmp_path / "not" / "yet"))
    assert RED not in fine.values()
    assert {"runs", "cache", "temp", "JIT locks", "compiler", "host name", "ports"} <= set(fine)
    failing = states("slurm", "/proc/runs", PATH=str(tmp_path), TORCH_EXTENSIONS_DIR=str(tmp_path / "ext"))
    assert failing["commands"] == failing["runs"] == RED
    assert "temp" not in failing  # the run does not use the login node's
    assert failing["compiler"] == failing["JIT locks"] == YELLOW
