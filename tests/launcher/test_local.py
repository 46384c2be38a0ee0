"""bellwether train: its output, what it refuses, and what it leaves behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bellwether.launcher import local
from tests.launcher.processes import ROOT, finish, start, steps
from tests.tiers import covering


@pytest.mark.process
def test_train_prints_a_summary_and_writes_report_and_export(space: Path) -> None:
    arguments = ("bellwether", "train", "quick.yaml", "--nproc", "2", "name=done", "seed=3", "log.report=true")
    umask = os.umask(0o027)
    try:
        process = start(space, *arguments, SLURM_STEP_NUM_TASKS="1")
    finally:
        os.umask(umask)
    status, out, error = finish(process)
    assert status == 0, error
    modes = {str(p.relative_to(space)): p.stat().st_mode & 0o777 for p in (space / "runs/done").rglob("*")}
    assert {name: oct(mode) for name, mode in modes.items() if mode not in (0o640, 0o750)} == {}
    assert re.search(r"held-out loss +\d", out)
    assert (space / "runs/done/report.html").is_file()
    assert (space / "runs/done/export/model.safetensors").is_file()
    assert steps(space, "done") == [1, 2, 3, 4]
    assert "2 processes" in error
    # Neither the same command on a finished run nor another config for its directory starts a process.
    launches = len(list((space / "runs/done/logs/ranks").glob("*")))
    again = finish(start(space, *arguments))
    assert (again[0], "nothing is left to do" in again[2]) == (0, True), again
    assert re.search(r"held-out loss +\d", again[1])
    status, out, error = finish(start(space, *arguments[:-2], "seed=4"))
    assert status == 2, error
    assert error.count("seed: 4") == 1
    assert "Traceback" not in error
    assert steps(space, "done") == [1, 2, 3, 4]
    assert len(list((space / "runs/done/logs/ranks").glob("*"))) == launches


@pytest.mark.full
@pytest.mark.process
@pytest.mark.parametrize("recipe", ["bert-tiny", "resnet-digits"])
def test_small_recipes_run(space: Path, recipe: str) -> None:
    arguments = (f"data.cache={space}/cache", "stop_after=3 steps", "evaluate.limit=64")
    status, out, error = finish(
        start(space, "bellwether", "train", f"{ROOT}/configs/{recipe}.yaml", "--nproc", "2", *arguments)
    )
    assert status == 0, error
    assert steps(space, recipe) == [1, 3]
    assert f"{recipe}: stopped" in out


@pytest.mark.full
@pytest.mark.process
def test_torchrun_by_hand_inside_a_step_of_srun(space: Path) -> None:
    status, _, error = finish(
        start(space, "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint",
              "127.0.0.1:0", "-m", "bellwether.trainer", "quick.yaml", "name=torchrun", "engine.world_size=2", SLURM_STEP_NUM_TASKS="1")
    )  # fmt: skip
    assert status == 0, error
    assert steps(space, "torchrun") == [1, 2, 3, 4]


# The others come to the same check, which test_process_info.py calls with each.
@covering(lambda who: who == "srun")
@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "environment", "who"),
    [
        (["engine.world_size=2"], {}, "engine.world_size asked for 2"),
        ([], {"BELLWETHER_WORLD_SIZE": "2"}, "bellwether --nproc"),
        ([], {"SLURM_STEP_NUM_TASKS": "4"}, "srun"),
        ([], {"RANK": "one"}, "RANK: 'one'"),
    ],
)
def test_unexpected_world_size_is_refused(
    space: Path, arguments: list[str], environment: dict[str, str], who: str
) -> None:
    status, _, error = finish(start(space, "bellwether.trainer", "quick.yaml", "name=alone", *arguments, **environment))
    assert status == 2
    assert error.count(who) == 1, error
    assert "Traceback" not in error
    assert not (space / "runs/alone").exists()


@pytest.mark.process
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["batch.globl=3"], ["batch.globl", "'global'"]),
        (["batch.global=15"], ["batch.global: 15", "14 and 16"]),
        (["nothing.yaml"], ["nothing.yaml"]),
    ],
)
def test_invalid_config_is_refused_once_before_any_process_starts(
    space: Path, overrides: list[str], words: list[str]
) -> None:
    status, out, error = finish(start(space, "bellwether", "train", "quick.yaml", "--nproc", "2", *overrides), 240)
    assert status == 2
    assert out == ""
    assert len(error.splitlines()) == 1, error
    for word in words:
        assert word in error


@pytest.mark.process
def test_limit_of_open_files_is_raised_to_the_hard_limit() -> None:
    program = (
        "import resource\n"
        "from bellwether.trainer.__main__ import _raise_open_files_limit\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))\n"
        "_raise_open_files_limit()\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True)


@pytest.mark.full
@pytest.mark.process
def test_report_is_rebuilt_for_a_run_and_refused_elsewhere(space: Path) -> None:
    finish(start(space, "bellwether", "train", "quick.yaml", "name=reported", "log.report=true"))
    (space / "runs/reported/report.html").unlink()
    status, out, _ = finish(start(space, "bellwether", "report", "runs/reported"))
    assert status == 0
    assert "report.html" in out
    assert (space / "runs/reported/report.html").is_file()
    status, _, error = finish(start(space, "bellwether", "report", "runs"))
    assert status == 2
    assert "config.yaml" in error


def test_train_leaves_the_environment_of_its_caller_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the environment that the processes inherit matters, so none is started."""
    monkeypatch.delenv("BELLWETHER_WORLD_SIZE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    inherited: list[tuple[str, str]] = []

    def start_processes(
        name: str, program: str, arguments: object, environments: dict[int, dict[str, str]], *_: object
    ) -> Any:
        inherited.extend((e["BELLWETHER_WORLD_SIZE"], e["OMP_NUM_THREADS"]) for e in environments.values())
        return SimpleNamespace(wait=lambda period: SimpleNamespace(failures={}))

    monkeypatch.setattr("bellwether.launcher.ranks.start_processes", start_processes)
    before = dict(os.environ)
    assert local.train(f"{ROOT}/configs/resnet-digits.yaml", ["engine.device=cpu"], 2) == 0
    assert inherited == [("2", "3"), ("2", "3")]
    assert dict(os.environ) == before
