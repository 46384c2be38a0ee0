"""Whole sweeps on this machine: interrupted and resumed, extended, refused, and the status of each trial."""

from __future__ import annotations

import json
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
from bellwether.experiments.sweep.slots import slots
from bellwether.experiments.sweep.start import outline
from bellwether.experiments.sweep.start import sweep as start
from bellwether.experiments.sweep.study import ConfigChanged, Study, open_study
from bellwether.experiments.sweep.trial_ids import TrialId, trial_ids
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
    """The steps in the metrics of each trial."""
    found = {}
    for path in sorted((folder / "runs/digits/trials").glob("*/metrics.jsonl")):
        found[path.parent.name] = [line["step"] for line in metrics.read(path.parent).train]
        lines = path.read_text().count('"event": "train"')
        assert lines == len(found[path.parent.name]), f"{path.parent.name} repeated steps"
    return found


@pytest.mark.process
def test_interrupted_sweep_resumes_without_losing_or_repeating_steps(tmp_path: Path) -> None:
    file = write(tmp_path)
    command = [sys.executable, "-m", "bellwether", "sweep", str(file)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    # Interrupted during its second round of trials.
    while sum(len(s) < 8 for s in steps(tmp_path).values()) < 1 or len(steps(tmp_path)) < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 75, error
    assert "the same command resumes them" in error
    assert len(steps(tmp_path)) < 6

    again = run(file)
    assert again.returncode == 0, again.stderr
    study = open_study(tmp_path / "runs/digits")
    names = [resolved.name for each in trial_ids(study.sweep) if (resolved := study.resolve(each))]
    assert len(names) == 6
    assert steps(tmp_path) == {name: list(range(1, 9)) for name in sorted(names)}
    found = io.read(tmp_path / "runs/digits")
    assert [trial.run for trial in found] == [f"trials/{name}" for name in names]
    assert {trial.status for trial in found} == {"complete"}
    assert [m["step"] for m in found[0].measurements] == [2, 4, 6, 8]
    assert {"train/loss", "val/loss", "val/accuracy", "train/samples_per_s"} <= found[0].measurements[0].keys()
    # The second seed repeats the better of the two settings.
    for cell in {(t.optimizer, t.batch_size) for t in found}:
        members = [t for t in found if (t.optimizer, t.batch_size) == cell]
        best = max(members[:2], key=lambda t: max(m["val/accuracy"] for m in t.measurements))
        assert members[2].parameters == best.parameters
        assert [t.seed for t in members] == [1, 1, 2]
    assert not list((tmp_path / "runs/digits/trials").glob("*/checkpoints"))

    # Nothing is left to run; one more seed runs only that seed; a changed config is refused.
    assert "6 trials, 0 left" in run(file).stderr
    assert "8 trials, 2 left" in run(write(tmp_path, seeds=3)).stderr
    assert len(steps(tmp_path)) == 8
    refused = run(write(tmp_path, set={"duration": "9 steps"}, space={"optimizer.lr": [0.02]}))
    assert refused.returncode == 2
    assert "set.duration: '9 steps': " in refused.stderr
    assert "space.optimizer.lr: " in refused.stderr
    assert len(steps(tmp_path)) == 8


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
def test_slots_divide_the_machine(
    tmp_path: Path, sweep: dict[str, Any], cores: int, gpus: int, jobs: int | None, expected: Any
) -> None:
    found = slots(spec.read(write(tmp_path, **sweep)), range(cores), gpus, jobs)
    assert [(slot.cores, slot.gpus) for slot in found] == expected


def test_trial_that_needs_more_gpus_than_the_machine_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"processes: 8: .* this machine has 4"):
        slots(spec.read(write(tmp_path, processes=8)), range(16), 4, None)


@pytest.mark.parametrize(
    "changes, request_, message",
    [
        ({"set": {"duration": "x"}}, {}, "duration: 'x': not a duration"),
        ({"optimizers": {"a": {"set": {"optimizer.nam": "sgd"}}}}, {}, "did you mean 'name'"),
        ({"space": {"optimizer.lrr": [1.0]}}, {}, "did you mean 'lr'"),
        ({"space": {"optimizer.lr": [1.0, -1.0]}}, {}, "optimizer.lr: -1.0: must be greater than 0"),
        ({"set": {"stop_after": "2 steps"}}, {}, "stop_after: '2 steps': has no effect in a sweep"),
        ({"set": {"evalute.every": "1 steps"}}, {}, r"SWEEP.yaml: set: evalute: .*did you mean 'evaluate'"),
        (
            {"optimizers": {"a": {"set": {"optimizer.name": "sdg"}}}},
            {},
            r"SWEEP.yaml: optimizers.a at batch 32: .*mean 'sgd'",
        ),
        ({"space": {"optimizer.lr": []}}, {}, "space: .* optimizer.lr is an empty list"),
        ({"optimizers": {}}, {}, "optimizers: {}: write at least 1"),
        ({"batches": []}, {}, r"batches: \[\]: write at least 1"),
        ({"set": {"batch.global": 64}}, {}, "set: .* batch.global is set by the sweep"),
        ({"batches": [32, 33], "processes": 2}, {}, "batch.global: 33: cannot be divided equally among 2 .* 32 and 34"),
        ({"set": {"phases": [{"batch": {"global": 64}}]}}, {}, "config: .* has phases with batch sizes of their own"),
        ({}, {"nodes": 2}, "--nodes: 2: has no effect on this machine"),
    ],
)
def test_sweep_with_an_invalid_config_is_refused_before_the_first_trial(
    tmp_path: Path, changes: dict[str, Any], request_: dict[str, Any], message: str
) -> None:
    file = write(tmp_path, **changes)
    with pytest.raises((ConfigError, ConfigErrors), match=message):
        start(str(file), Request(config=str(file), overrides=(), on="local", **request_), None, False)
    assert not (tmp_path / "runs").exists()


def test_config_is_refused_as_a_sweep_and_a_sweep_as_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SWEEP: .* is the config of a run"):
        spec.read(ROOT / "configs/bert-tiny.yaml")
    with pytest.raises(ConfigErrors, match=r"CONFIG: .* is a sweep; bellwether sweep runs it"):
        load(write(tmp_path))


def test_outline_warns_if_trials_are_evaluated_only_at_their_end(tmp_path: Path) -> None:
    for every, warns in [("2 steps", False), ("8 steps", True), (None, True)]:
        sweep = spec.read(write(tmp_path, target="accuracy >= 0.9", set={"evaluate.every": every}))
        assert ("set evaluate.every" in outline(sweep)) == warns


def test_preempted_trial_is_unfinished_and_not_pruned(tmp_path: Path) -> None:
    """Of a trial with pruning step 6: stopped by a signal at step 2 it is unfinished, at step 6 it is pruned."""
    study = Study(spec.read(write(tmp_path)))
    study.prepare()
    trial_id = next(trial_ids(study.sweep))
    study.start(trial_id)
    (study.trials_dir / f"{trial_id.name}.json").write_text(
        '{"optimizer": "lamb", "batch": 32, "seed": 1, "setting": 0, "parameters": {}, "stop_after": 6}'
    )
    for step, status in [(2, "unfinished"), (6, "pruned")]:
        log = metrics.Metrics(study.trials_dir / trial_id.name)
        log.write("start", step=0, samples=0)
        log.write("train", step=step, samples=32 * step, loss=1.0, lr=0.1)
        log.write("end", step=step, samples=32 * step, seconds=1.0, reason="stopped")
        log.close()
        assert study.status(trial_id) == status
    study.fail(trial_id, "an error")
    assert Study(study.sweep).status(trial_id) == "failed"


def test_extended_search_repeats_a_new_best_setting(tmp_path: Path) -> None:
    def extended(settings: int) -> Study:
        file = write(
            tmp_path, search={"kind": "random", "trials": settings}, space={"optimizer.lr": {"low": 1e-3, "high": 1e-1}}
        )
        study = Study(spec.read(file))
        study.prepare()
        return study

    def finish(study: Study, trial_id: TrialId, accuracy: float) -> None:
        study.start(trial_id)
        log = metrics.Metrics(study.trials_dir / trial_id.name)
        log.write("start", step=0, samples=0)
        kinds = {"loss_augmented": 0.9, "accuracy_augmented": 0.5, "loss_averaged": 0.8, "accuracy_averaged": 0.25}
        log.write("eval", step=8, samples=256, loss=1.0, accuracy=accuracy, examples=9, **kinds)
        log.write("end", step=8, samples=256, seconds=1.0, reason="finished")
        log.close()

    def best(study: Study) -> str | None:
        ids = trial_ids(study.sweep)
        resolved = study.resolve(next(each for each in ids if each.cell == ("lamb", 32) and each.setting is None))
        return None if resolved is None else resolved.name

    study = extended(2)
    finish(study, TrialId("lamb", 32, 0, 0), 0.7)
    assert best(study) is None
    finish(study, TrialId("lamb", 32, 1, 0), 0.6)
    assert best(study) == "lamb-32-000-1"
    # A bad repetition does not change which setting is the best: it was chosen on the first seed.
    finish(study, TrialId("lamb", 32, 0, 1), 0.1)
    study = extended(3)
    assert best(study) is None
    finish(study, TrialId("lamb", 32, 2, 0), 0.65)
    assert best(study) == "lamb-32-000-1"
    assert not any(trial_id.optimizer == "lamb" for trial_id in study.pending())
    study = extended(4)
    finish(study, TrialId("lamb", 32, 3, 0), 0.8)
    assert best(study) == "lamb-32-003-1"
    assert [trial_id.name for trial_id in study.pending() if trial_id.optimizer == "lamb"] == ["lamb-32-best-1"]
    assert array.begin(study, TrialId("lamb", 32, None, 1)) == 0
    finish(study, TrialId("lamb", 32, 3, 1), 0.75)
    assert array.begin(study, TrialId("lamb", 32, None, 1)) == 3  # nothing left to do
    assert array.begin(study, TrialId("sgd", 32, None, 1)) == 1  # started too early
    found = {Path(trial.run).name: trial for trial in study.collect()}
    assert found["lamb-32-003-1"].parameters == found["lamb-32-003-0"].parameters
    assert "lamb-32-000-1" in found
    # Every kind of evaluation is collected; `examples` is no metric.
    assert found["lamb-32-003-1"].measurements[-1] == {
        "step": 8, "samples": 256, "val/loss": 1.0, "val/accuracy": 0.75, "val/loss_augmented": 0.9,
        "val/accuracy_augmented": 0.5, "val/loss_averaged": 0.8, "val/accuracy_averaged": 0.25,
    }  # fmt: skip
    assert not any(trial_id.optimizer == "lamb" for trial_id in study.pending())


def test_sweep_stops_if_its_config_changes(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text((ROOT / "configs/resnet-digits.yaml").read_text())
    study = Study(spec.read(write(tmp_path, config=str(base))))
    study.prepare()
    first, second = list(trial_ids(study.sweep))[:2]
    assert study.start(first) is not None
    base.write_text(base.read_text().replace("flip: false", "flip: true"))
    with pytest.raises(ConfigChanged, match="has changed since the sweep began"):
        open_study(study.directory).start(second)
    assert study.start(first) is not None


def test_study_of_an_older_version_is_resumed(tmp_path: Path) -> None:
    decay = {"set": {"optimizer.name": "adam"}, "space": {"optimizer.decay": ["l2", "decoupled"]}}
    old = {"set": {"diagnose.every": "5 steps"}, "target": "loss <= 1", "stop": {"beaten": 1.5}}
    file = write(tmp_path, optimizers={"adam": decay}, **old)
    study = Study(spec.read(file))
    study.prepare()
    first, second = list(trial_ids(study.sweep))[:2]
    study.start(first)
    # Files as an older version wrote them.
    for stored in (study.directory / "sweep.yaml", study.config_file(first), study.trials_dir / f"{first.name}.json"):
        text = stored.read_text().replace("weight_decay_mode", "decay")
        stored.write_text(text.replace("prune_factor:", "beaten:").replace("trajectory", "diagnose"))
    assert "beaten: 1.5" in (study.directory / "sweep.yaml").read_text()

    Study(spec.read(file)).prepare()
    resumed = open_study(study.directory)
    assert set(resumed.collect()[0].parameters) == {"optimizer.lr", "optimizer.weight_decay_mode"}
    assert resumed.start(first).optimizer.weight_decay_mode == "l2"
    resumed.start(second)
    record = json.loads((resumed.trials_dir / f"{second.name}.json").read_text())
    assert set(record["parameters"]) == {"optimizer.lr", "optimizer.weight_decay_mode"}
    assert resumed.pending()[:2] == [first, second]


def test_copied_study_shows_its_own_trials(tmp_path: Path) -> None:
    study = Study(spec.read(write(tmp_path)))
    study.prepare()
    shutil.copytree(study.directory, tmp_path / "runs/copy")
    study.start(next(trial_ids(study.sweep)))
    assert len(open_study(study.directory).collect()) == 1
    assert open_study(tmp_path / "runs/copy").collect() == []


def test_second_command_on_the_same_study_is_refused(tmp_path: Path) -> None:
    from filelock import FileLock

    sweep = spec.read(write(tmp_path))
    os.makedirs(sweep.directory)
    with FileLock(sweep.directory / ".lock"):
        with pytest.raises(ConfigError, match="another bellwether sweep works in"):
            local.run(sweep, None, False)
