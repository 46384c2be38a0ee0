"""Whole sweeps on this machine: interrupted and gone on with, extended, refused, and what each run is told to have done."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from bellwether.experiments.analysis import io
from bellwether.experiments.sweep import array, local, spec
from bellwether.experiments.sweep import study as trials
from bellwether.experiments.sweep.slots import Slot, slots
from bellwether.experiments.sweep.start import outline
from bellwether.experiments.sweep.start import sweep as start
from bellwether.launcher.launch import Request
from bellwether.trainer import metrics
from bellwether.trainer.config import ConfigError, ConfigErrors, load

ROOT = Path(__file__).resolve().parents[3]

SWEEP: dict[str, Any] = {
    "name": "digits",
    "config": str(ROOT / "configs/resnet-digits.yaml"),
    "set": {
        "model.depth": 8, "data.size": 8, "duration": "8 steps", "evaluate.every": "2 steps", "evaluate.limit": 64,
        "batch.micro": 64, "data.workers": 0, "checkpoint.every": "1 steps", "log.every": "1 steps",
    },
    "batches": [32],
    "optimizers": {"lamb": {"set": {"optimizer.name": "lamb"}}, "sgd": {"set": {"optimizer.name": "sgd"}}},
    "space": {"optimizer.lr": [0.02, 0.05]},
    "search": {"kind": "grid"},
    "seeds": 2,
}  # fmt: skip


def write(folder: Path, **changes: Any) -> Path:
    file = folder / "SWEEP.yaml"
    cache = {"data.cache": str(folder / "cache")}
    raw = {**SWEEP, "runs": str(folder / "runs"), **changes}
    raw["set"] = {**SWEEP["set"], **cache, **changes.get("set", {})}
    file.write_text(yaml.safe_dump(raw))
    return file


def run(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bellwether", "sweep", str(file), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)


def steps(folder: Path) -> dict[str, list[int]]:
    """The steps that each run's metrics hold, repetitions included."""
    found = {}
    for path in sorted((folder / "runs/digits/trials").glob("*/metrics.jsonl")):
        found[path.parent.name] = [line["step"] for line in metrics.read(path.parent).train]
        whole = path.read_text().count('"event": "train"')
        assert whole == len(found[path.parent.name]), f"{path.parent.name} repeated steps"
    return found


@pytest.mark.process
def test_interrupted_and_gone_on_with_no_run_is_lost_or_repeated(tmp_path: Path) -> None:
    file = write(tmp_path)
    command = [sys.executable, "-m", "bellwether", "sweep", str(file)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    # In the midst of its second round of runs.
    while sum(len(s) < 8 for s in steps(tmp_path).values()) < 1 or len(steps(tmp_path)) < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 75, error
    assert "the same command goes on" in error
    assert len(steps(tmp_path)) < 6

    again = run(file)
    assert again.returncode == 0, again.stderr
    study = trials.open_study(tmp_path / "runs/digits")
    names = [made.name for slot in slots(study.sweep) if (made := study.decided(slot))]
    assert len(names) == 6
    assert steps(tmp_path) == {name: list(range(1, 9)) for name in sorted(names)}
    found = io.read(tmp_path / "runs/digits")
    assert [trial.run for trial in found] == [f"trials/{name}" for name in names]
    assert {trial.status for trial in found} == {"complete"}
    assert [m["step"] for m in found[0].measurements] == [2, 4, 6, 8]
    assert {"train/loss", "val/loss", "val/accuracy", "train/samples_per_s"} <= found[0].measurements[0].keys()
    # The best of the two settings is what the second seed was given.
    for cell in {(t.optimizer, t.batch_size) for t in found}:
        members = [t for t in found if (t.optimizer, t.batch_size) == cell]
        best = max(members[:2], key=lambda t: max(m["val/accuracy"] for m in t.measurements))
        assert members[2].parameters == best.parameters
        assert [t.seed for t in members] == [1, 1, 2]
    assert not list((tmp_path / "runs/digits/trials").glob("*/checkpoints"))

    # Again: nothing is left. With one more seed: that alone is run. With another config: refused.
    assert "6 runs, 0 left" in run(file).stderr
    assert "8 runs, 2 left" in run(write(tmp_path, seeds=3)).stderr
    assert len(steps(tmp_path)) == 8
    refused = run(write(tmp_path, set={"duration": "9 steps"}, space={"optimizer.lr": [0.02]}))
    assert refused.returncode == 2
    assert "set.duration: '9 steps': " in refused.stderr
    assert "space.optimizer.lr: " in refused.stderr
    assert len(steps(tmp_path)) == 8


@pytest.mark.process
def test_what_reached_diverged_failed_or_was_beaten(tmp_path: Path) -> None:
    optimizers = {
        "fast": {"set": {"optimizer.name": "sgd"}, "space": {"optimizer.lr": [0.05]}},
        "slow": {"set": {"optimizer.name": "sgd"}, "space": {"optimizer.lr": [0.05, 1e-9]}},
        "wild": {"set": {"optimizer.name": "sgd"}, "space": {"optimizer.lr": [1e30]}},
        "wrong": {"set": {"data.source": str(tmp_path / "nowhere")}, "space": {"optimizer.lr": [0.05]}},
    }
    file = write(
        tmp_path, optimizers=optimizers, batches=[64], seeds=2, target="loss <= 2.2", stop={"beaten": 1.0},
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
    assert "tried again with --retry" in done.stderr
    # Where all diverged or failed there is nothing to repeat; and what failed is not tried again by itself.
    assert done.stderr.count("no setting has come to its end") == 2
    assert "9 runs, 0 left" in run(file).stderr
    (tmp_path / "nowhere").symlink_to("/nonexistent")
    assert "1 that failed is tried again" in run(file, "--retry").stderr


@pytest.mark.parametrize(
    "sweep, cores, gpus, jobs, expected",
    [
        ({}, 4, 0, None, [([0], []), ([1], []), ([2], []), ([3], [])]),
        ({"processes": 2, "cores": 1}, 4, 0, None, [([0, 1], []), ([2, 3], [])]),
        ({"cores": 3}, 4, 0, None, [([0, 1, 2], [])]),
        ({"cores": 8}, 4, 0, None, [([0, 1, 2, 3], [])]),
        ({}, 2, 0, 3, [([], []), ([], []), ([], [])]),
        ({}, 4, 0, 1, [([0], [])]),
        ({"processes": 2}, 8, 4, None, [([0, 1, 2, 3], [0, 1]), ([4, 5, 6, 7], [2, 3])]),
        ({}, 8, 2, 5, [([0, 1, 2, 3], [0]), ([4, 5, 6, 7], [1])]),
    ],
)
def test_how_a_machine_is_shared_out(
    tmp_path: Path, sweep: dict[str, Any], cores: int, gpus: int, jobs: int | None, expected: Any
) -> None:
    asked = spec.read(write(tmp_path, **sweep))
    found = local.places(asked, range(cores), gpus, jobs)
    assert [(place.cores, place.gpus) for place in found] == expected


def test_more_gpus_a_run_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"processes: 8: .* there are 4 here"):
        local.places(spec.read(write(tmp_path, processes=8)), range(16), 4, None)


@pytest.mark.parametrize(
    "changes, request_, said",
    [
        ({"set": {"duration": "x"}}, {}, "duration: 'x': not a duration"),
        ({"optimizers": {"a": {"set": {"optimizer.nam": "sgd"}}}}, {}, "did you mean 'name'"),
        ({"space": {"optimizer.lrr": [1.0]}}, {}, "did you mean 'lr'"),
        ({"space": {"optimizer.lr": [1.0, -1.0]}}, {}, "optimizer.lr: -1.0: must be greater than 0"),
        ({"set": {"stop_after": "2 steps"}}, {}, "stop_after: '2 steps': has no meaning in a sweep"),
        ({"set": {"evalute.every": "1 steps"}}, {}, r"SWEEP.yaml: set: evalute: .*did you mean 'evaluate'"),
        (
            {"optimizers": {"a": {"set": {"optimizer.name": "sdg"}}}},
            {},
            r"SWEEP.yaml: optimizers.a at batch 32: .*mean 'sgd'",
        ),
        ({"space": {"optimizer.lr": []}}, {}, "space: .* optimizer.lr is an empty list"),
        ({"optimizers": {}}, {}, "optimizers: {}: write at least 1"),
        ({"batches": []}, {}, r"batches: \[\]: write at least 1"),
        ({"set": {"batch.global": 64}}, {}, "set: .* batch.global is the sweep's own"),
        ({"batches": [32, 33], "processes": 2}, {}, "batch.global: 33: cannot be shared by 2 .* 32 and 34"),
        ({"set": {"phases": [{"batch": {"global": 64}}]}}, {}, "config: .* has phases with batches of their own"),
        ({}, {"nodes": 2}, "--nodes: 2: has no meaning here"),
    ],
)
def test_what_no_run_could_do_is_refused_before_any(
    tmp_path: Path, changes: dict[str, Any], request_: dict[str, Any], said: str
) -> None:
    file = write(tmp_path, **changes)
    with pytest.raises((ConfigError, ConfigErrors), match=said):
        start(str(file), Request(config=str(file), overrides=(), on="local", **request_), None, False)
    assert not (tmp_path / "runs").exists()


def test_a_config_is_no_sweep_and_a_sweep_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SWEEP: .* is the config of a run"):
        spec.read(ROOT / "configs/bert-tiny.yaml")
    with pytest.raises(ConfigErrors, match=r"CONFIG: .* is a sweep; bellwether sweep runs it"):
        load(write(tmp_path))


def test_a_target_that_is_looked_at_too_late_is_told(tmp_path: Path) -> None:
    for every, told in [("2 steps", False), ("8 steps", True), (None, True)]:
        asked = spec.read(write(tmp_path, target="accuracy >= 0.9", set={"evaluate.every": every}))
        assert ("set evaluate.every" in outline(asked)) == told


def test_a_signal_is_no_defeat(tmp_path: Path) -> None:
    """A run that others would beat at step 6, cut off at step 2, goes on; one that came to step 6 is beaten."""
    study = trials.Study(spec.read(write(tmp_path)))
    study.prepare()
    slot = next(slots(study.sweep))
    study.begin(slot)
    (study.trials / f"{slot.name}.json").write_text(
        '{"optimizer": "lamb", "batch": 32, "seed": 1, "setting": 0, "parameters": {}, "stop_after": 6}'
    )
    for step, status in [(2, "unfinished"), (6, "pruned")]:
        log = metrics.Metrics(study.trials / slot.name)
        log.write("start", step=0, samples=0)
        log.write("train", step=step, samples=32 * step, loss=1.0, lr=0.1)
        log.write("end", step=step, samples=32 * step, seconds=1.0, reason="stopped")
        log.close()
        assert study.status(slot) == status
    study.fail(slot, "a word of something else")
    assert trials.Study(study.sweep).status(slot) == "failed"


def test_a_search_that_grows_may_find_another_best_which_is_repeated_too(tmp_path: Path) -> None:
    def grown(settings: int) -> trials.Study:
        file = write(
            tmp_path, search={"kind": "random", "trials": settings}, space={"optimizer.lr": {"low": 1e-3, "high": 1e-1}}
        )
        study = trials.Study(spec.read(file))
        study.prepare()
        return study

    def make(study: trials.Study, slot: Slot, accuracy: float) -> None:
        study.begin(slot)
        log = metrics.Metrics(study.trials / slot.name)
        log.write("start", step=0, samples=0)
        kinds = {"loss_augmented": 0.9, "accuracy_augmented": 0.5, "loss_averaged": 0.8, "accuracy_averaged": 0.25}
        log.write("eval", step=8, samples=256, loss=1.0, accuracy=accuracy, examples=9, **kinds)
        log.write("end", step=8, samples=256, seconds=1.0, reason="finished")
        log.close()

    def best(study: trials.Study) -> str | None:
        run = study.decided(
            next(slot for slot in slots(study.sweep) if slot.cell == ("lamb", 32) and slot.setting is None)
        )
        return None if run is None else run.name

    study = grown(2)
    make(study, Slot("lamb", 32, 0, 0), 0.7)
    assert best(study) is None
    make(study, Slot("lamb", 32, 1, 0), 0.6)
    assert best(study) == "lamb-32-000-1"
    make(
        study, Slot("lamb", 32, 0, 1), 0.1
    )  # a worse seed makes it no worse a setting than was thought: one best is repeated
    study = grown(3)
    assert best(study) is None
    make(study, Slot("lamb", 32, 2, 0), 0.65)
    assert best(study) == "lamb-32-000-1"
    assert not any(slot.optimizer == "lamb" for slot in study.pending())
    study = grown(4)
    make(study, Slot("lamb", 32, 3, 0), 0.8)
    assert best(study) == "lamb-32-003-1"
    assert [slot.name for slot in study.pending() if slot.optimizer == "lamb"] == ["lamb-32-best-1"]
    assert array.begin(study, Slot("lamb", 32, None, 1)) == 0
    make(study, Slot("lamb", 32, 3, 1), 0.75)
    assert array.begin(study, Slot("lamb", 32, None, 1)) == 3  # a task that has nothing left to do
    assert array.begin(study, Slot("sgd", 32, None, 1)) == 1  # one that came too early
    found = {Path(trial.run).name: trial for trial in study.collect()}
    assert found["lamb-32-003-1"].parameters == found["lamb-32-003-0"].parameters
    assert "lamb-32-000-1" in found
    # Every kind of evaluation comes along, in which `examples` is none.
    assert found["lamb-32-003-1"].measurements[-1] == {
        "step": 8, "samples": 256, "val/loss": 1.0, "val/accuracy": 0.75, "val/loss_augmented": 0.9,
        "val/accuracy_augmented": 0.5, "val/loss_averaged": 0.8, "val/accuracy_averaged": 0.25,
    }  # fmt: skip
    assert not any(slot.optimizer == "lamb" for slot in study.pending())


def test_a_config_that_changes_under_a_sweep_stops_it(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text((ROOT / "configs/resnet-digits.yaml").read_text())
    study = trials.Study(spec.read(write(tmp_path, config=str(base))))
    study.prepare()
    first, second = list(slots(study.sweep))[:2]
    assert study.begin(first) is not None
    base.write_text(base.read_text().replace("flip: false", "flip: true"))
    with pytest.raises(trials.ConfigChanged, match="has changed since the sweep began"):
        trials.open_study(study.directory).begin(second)
    assert study.begin(first) is not None


def test_a_copy_of_a_sweep_shows_its_own_runs(tmp_path: Path) -> None:
    study = trials.Study(spec.read(write(tmp_path)))
    study.prepare()
    shutil.copytree(study.directory, tmp_path / "runs/copy")
    study.begin(next(slots(study.sweep)))
    assert len(trials.open_study(study.directory).collect()) == 1
    assert trials.open_study(tmp_path / "runs/copy").collect() == []


def test_two_at_once_are_kept_apart(tmp_path: Path) -> None:
    from filelock import FileLock

    asked = spec.read(write(tmp_path))
    os.makedirs(asked.directory)
    with FileLock(asked.directory / ".lock"):
        with pytest.raises(ConfigError, match="another bellwether sweep works in"):
            local.run(asked, None, False)
