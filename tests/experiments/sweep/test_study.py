"""The study of a sweep: status, extension, changes of the config, studies of older versions, copies and its lock."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from bellwether.experiments.sweep import array, local, spec
from bellwether.experiments.sweep.study import ConfigChanged, Study, open_study
from bellwether.experiments.sweep.trial_ids import TrialId, trial_ids
from bellwether.trainer import metrics
from bellwether.trainer.config import Config, ConfigError
from tests.experiments.sweep.digits_sweep import ROOT, write
from tests.killed import at_each_write


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
        kinds |= {"accuracy_test": 0.4, "f1_macro_test": 0.3}  # of a set of held-out data
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
    # Every kind of evaluation is collected, and of each set; `examples` is no metric.
    assert found["lamb-32-003-1"].measurements[-1] == {
        "step": 8, "samples": 256, "val/loss": 1.0, "val/accuracy": 0.75, "val/loss_augmented": 0.9,
        "val/accuracy_augmented": 0.5, "val/loss_averaged": 0.8, "val/accuracy_averaged": 0.25,
        "val/accuracy_test": 0.4, "val/f1_macro_test": 0.3,
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


def test_sweep_that_was_killed_at_any_write_starts_the_same_trial_again(tmp_path: Path) -> None:
    file = write(tmp_path)

    def begin() -> Config:
        study = Study(spec.read(file))
        study.prepare()
        return study.start(next(trial_ids(study.sweep)))

    expected, killed = begin(), []
    shutil.rmtree(tmp_path / "runs")
    for event in at_each_write(tmp_path / "runs", begin):
        killed.append(event)
        assert begin() == expected, event
        shutil.rmtree(tmp_path / "runs")
    assert len(killed) >= 6
