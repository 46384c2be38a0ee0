"""Whole sweeps on this machine: interrupted and resumed, and the status of each trial."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bellwether.experiments.analysis import io
from bellwether.experiments.sweep.study import open_study
from bellwether.experiments.sweep.trial_ids import trial_ids
from bellwether.trainer import metrics
from tests.experiments.sweep.digits_sweep import ROOT, SWEEP, write


def run(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bellwether", "sweep", str(file), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)


def steps(folder: Path) -> dict[str, list[int]]:
    """The steps in the metrics of each trial."""
    found = {}
    for path in sorted((folder / "runs/digits/trials").glob("*/metrics.jsonl")):
        lines = path.read_text().count('"event": "train"')  # before the steps: the trial may write more meanwhile
        found[path.parent.name] = [line["step"] for line in metrics.read(path.parent).train]
        assert lines <= len(found[path.parent.name]), f"{path.parent.name} repeated steps"
    return found


@pytest.mark.process
def test_interrupted_sweep_resumes_without_losing_or_repeating_steps(tmp_path: Path) -> None:
    lamb = {"lamb": SWEEP["optimizers"]["lamb"]}
    file = write(tmp_path, optimizers=lamb)
    command = [sys.executable, "-m", "bellwether", "sweep", str(file), "--jobs", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    # Interrupted during its second trial.
    while len(steps(tmp_path)) < 2:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 75, error
    assert "the same command resumes them" in error
    assert len(steps(tmp_path)) < 3

    again = run(file)
    assert again.returncode == 0, again.stderr
    study = open_study(tmp_path / "runs/digits")
    names = [resolved.name for each in trial_ids(study.sweep) if (resolved := study.resolve(each))]
    assert len(names) == 3
    assert steps(tmp_path) == {name: list(range(1, 9)) for name in sorted(names)}
    found = io.read(tmp_path / "runs/digits")
    assert [trial.run for trial in found] == [f"trials/{name}" for name in names]
    assert {trial.status for trial in found} == {"complete"}
    assert [m["step"] for m in found[0].measurements] == [2, 4, 6, 8]
    assert {"train/loss", "val/loss", "val/accuracy", "train/samples_per_s"} <= found[0].measurements[0].keys()
    # The second seed repeats the better of the two settings.
    best = max(found[:2], key=lambda t: max(m["val/accuracy"] for m in t.measurements))
    assert found[2].parameters == best.parameters
    assert [t.seed for t in found] == [1, 1, 2]
    assert not list((tmp_path / "runs/digits/trials").glob("*/checkpoints"))

    # Nothing is left to run; one more seed runs only that seed; a changed config is refused.
    assert "3 trials, 0 left" in run(file).stderr
    assert "4 trials, 1 left" in run(write(tmp_path, optimizers=lamb, seeds=3)).stderr
    assert len(steps(tmp_path)) == 4
    refused = run(write(tmp_path, optimizers=lamb, set={"duration": "9 steps"}, space={"optimizer.lr": [0.02]}))
    assert refused.returncode == 2
    assert "set.duration: '9 steps': " in refused.stderr
    assert "space.optimizer.lr: " in refused.stderr
    assert len(steps(tmp_path)) == 4


@pytest.mark.full
@pytest.mark.process
def test_status_of_complete_pruned_diverged_and_failed_trials(tmp_path: Path) -> None:
    optimizers = {
        "fast": {"set": {"optimizer.name": "sgd"}, "space": {"optimizer.lr": [0.05]}},
        "slow": {"set": {"optimizer.name": "sgd"}, "space": {"optimizer.lr": [0.05, 1e-9]}},
        "wild": {"set": {"optimizer.name": "sgd"}, "space": {"optimizer.lr": [1e30]}},
        "wrong": {"set": {"data.source": str(tmp_path / "nowhere")}, "space": {"optimizer.lr": [0.05]}},
    }
    file = write(
        tmp_path, optimizers=optimizers, batches=[64], seeds=2, target="loss <= 2.2", stop={"prune_factor": 1.0},
        set={"duration": "40 steps"},
    )  # fmt: skip
    done = run(file, "--jobs", "1")
    assert done.returncode == 1, done.stderr
    found = {Path(t.run).name: t for t in io.read(tmp_path / "runs/digits")}
    assert {name: trial.status for name, trial in found.items()} == {
        "fast-64-000-0": "complete",
        "fast-64-000-1": "complete",
        "slow-64-000-1": "complete",
        "slow-64-000-0": "complete",
        "slow-64-001-0": "pruned",
        "wild-64-000-0": "diverged",
        "wrong-64-000-0": "failed",
    }
    reached = found["slow-64-000-0"].measurements[-1]["step"]
    assert reached < 40
    assert found["slow-64-001-0"].measurements[-1]["step"] == reached
    assert "nowhere" in (tmp_path / "runs/digits/trials/wrong-64-000-0.failed").read_text()
    assert "--retry to retry the failed trials" in done.stderr
    # No setting is repeated if all diverged or failed, and a failed trial is retried only on request.
    assert done.stderr.count("no setting completed") == 2
    assert "9 trials, 0 left" in run(file).stderr
    (tmp_path / "nowhere").symlink_to("/nonexistent")
    assert "retrying 1 failed trial" in run(file, "--retry").stderr
