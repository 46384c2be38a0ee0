from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import yaml

from bellwether.trainer import build_locks, existing_run, rundir
from bellwether.trainer import config as c
from bellwether.trainer.config import Config, ConfigError, ConfigErrors
from tests.killed import at_each_write


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return c.validate(
        {
            "name": "x",
            "runs": str(tmp_path / "runs"),
            "duration": "2 epochs",
            "model": {"kind": "bert"},
            "data": {"kind": "text"},
            "batch": {"global": 512},
            "optimizer": {"lr": 1e-3},
            "phases": [{"batch": {"global": 256, "micro": 4}}],
        }
    )


def prepared(config: Config) -> Path:
    """A run directory in which training has started."""
    run, _ = rundir.prepare(config)
    (run / "metrics.jsonl").touch()
    return run


def changed(config: Config, **changes: object) -> Config:
    return c.validate({**c.dump(config), **changes})


def test_resolved_config_can_be_run_again(config: Config) -> None:
    run, _ = rundir.prepare(config)
    assert c.load(run / "config.yaml") == config
    assert (run / "config.yaml").read_text().startswith("# bellwether 0.1.0")


@pytest.mark.parametrize(
    "change",
    [
        {"engine": {"stage": 0, "world_size": 4}},
        {"checkpoint": {"every": "3 steps"}},
        {"stop_after": "3 steps"},
        {"batch": {"global": 512, "micro": 1}},
        {"data": {"kind": "text", "workers": 0}},
        {"phases": [{"batch": {"global": 256, "micro": 8}}]},
    ],
)
def test_keys_that_do_not_change_the_training_may_change(config: Config, change: dict) -> None:
    prepared(config)
    rundir.prepare(changed(config, **change))


@pytest.mark.parametrize("betas, accepted", [([0.9, 0.999], True), ([0.9, 0.98], False)])
def test_run_of_a_version_that_wrote_the_default_betas_resumes(
    config: Config, betas: list[float], accepted: bool
) -> None:
    assert config.optimizer.betas is None
    prepared(changed(config, optimizer={"lr": 1e-3, "betas": betas}))
    if accepted:
        rundir.prepare(config)
    else:
        with pytest.raises(ConfigErrors, match=r"optimizer\.betas"):
            rundir.prepare(config)


def test_run_of_a_version_that_packed_without_separators_resumes_only_as_such(config: Config) -> None:
    config = changed(config, phases=[])
    file = prepared(config) / "config.yaml"
    raw = yaml.safe_load(file.read_text())
    del raw["data"]["packing"], raw["data"]["random_tokens"]
    file.write_text(f"{file.read_text().splitlines()[0]}\n{yaml.safe_dump(raw)}")
    with pytest.raises(ConfigErrors, match=r"data\.packing: 'separated': .* was made with 'stream'"):
        rundir.prepare(config)
    rundir.prepare(changed(config, data={"kind": "text", "packing": "stream", "random_tokens": "all"}))


def test_run_of_a_version_whose_recipe_decayed_from_the_peak_resumes_only_as_such(config: Config) -> None:
    config = changed(config, phases=[], optimizer={"name": "lamb"}, schedule={"recipe": "lamb-bert"})
    assert config.schedule.decay_from == "start"
    file = prepared(config) / "config.yaml"
    raw = yaml.safe_load(file.read_text())
    del raw["schedule"]["decay_from"], raw["schedule"]["warmup_power"], raw["schedule"]["interval"]
    file.write_text(f"{file.read_text().splitlines()[0]}\n{yaml.safe_dump(raw)}")
    with pytest.raises(ConfigErrors, match=r"schedule\.decay_from: 'start': .* was made with 'warmup'"):
        rundir.prepare(config)
    rundir.prepare(changed(config, schedule={"recipe": "lamb-bert", "decay_from": "warmup"}))


def test_other_order_of_patterns_is_another_config(config: Config) -> None:
    """The first pattern that matches holds. A pattern with brackets is no phase, and one named as a free key is not free."""
    scales = {"layer[12].log": 2.0, "*": 3.0}
    prepared(changed(config, optimizer={"lr": 1e-3, "lr_scale": scales}))
    rundir.prepare(changed(config, optimizer={"lr": 1e-3, "lr_scale": scales}))[1].close()
    for other in (dict(reversed(scales.items())), {"layer[12].log": 5.0, "*": 3.0}):
        with pytest.raises(ConfigErrors, match=r"optimizer\.lr_scale: \["):
            rundir.prepare(changed(config, optimizer={"lr": 1e-3, "lr_scale": other}))


def test_other_order_of_held_out_sets_is_another_config(config: Config) -> None:
    """The first one decides which checkpoint is the best."""
    sets = {"matched": "a.txt", "mismatched": "b.txt"}
    prepared(changed(config, data={"kind": "text", "validation": sets}))
    rundir.prepare(changed(config, data={"kind": "text", "validation": sets}))[1].close()
    with pytest.raises(ConfigErrors, match=r"data\.validation: \['mismatched: b.txt', 'matched: a.txt'\]"):
        rundir.prepare(changed(config, data={"kind": "text", "validation": dict(reversed(sets.items()))}))


def test_run_of_a_version_without_the_keys_of_groups_resumes(config: Config) -> None:
    file = prepared(config) / "config.yaml"
    raw = yaml.safe_load(file.read_text())
    for key in ("include", "exclude", "layer_decay", "lr_scale", "stochastic_rounding", "kahan_sum"):
        del raw["optimizer"][key]
    file.write_text(f"{file.read_text().splitlines()[0]}\n{yaml.safe_dump(raw)}")
    rundir.prepare(config)


def test_config_of_a_run_without_steps_may_be_changed(config: Config) -> None:
    rundir.prepare(config)
    other = changed(config, seed=7)
    assert c.load(rundir.prepare(other)[0] / "config.yaml") == other


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 2}, "seed: 2"),
        ({"batch": {"global": 1024}}, "batch.global: 1024"),
        ({"optimizer": {"lr": 2e-3}}, "optimizer.lr: 0.002"),
        ({"optimizer": {"lr": 1e-3, "exclude": ["a.*"]}}, "optimizer.exclude: ['a.*']"),
        ({"optimizer": {"lr": 1e-3, "layer_decay": 0.5}}, "optimizer.layer_decay: 0.5"),
        ({"optimizer": {"lr": 1e-3, "lr_scale": {"log.*": 2}}}, "optimizer.lr_scale: ['log.*: 2']"),
        ({"phases": []}, "phases[0].batch.global: "),
        ({"phases": [{"batch": {"global": 128, "micro": 4}}]}, "phases[0].batch.global: 128"),
    ],
)
def test_changed_config_is_refused_naming_each_key(config: Config, change: dict, key: str) -> None:
    run = prepared(config)
    before = (run / "config.yaml").read_text()
    with pytest.raises(ConfigErrors) as caught:
        rundir.prepare(changed(config, **change))
    assert key in str(caught.value)
    assert "another name" in str(caught.value)
    assert (run / "config.yaml").read_text() == before


def test_directory_that_is_no_run_is_not_touched(config: Config) -> None:
    run = Path(config.runs) / "x"
    run.mkdir(parents=True)
    (run / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="no run directory of Bellwether"):
        rundir.prepare(config)
    assert [p.name for p in run.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("mine: 1", "no run directory of Bellwether"),
        ("# bellwether 0\na: [1", "damaged"),
        ("# bellwether 0\n- a", "damaged"),
    ],
)
def test_foreign_or_damaged_config_is_not_overwritten(config: Config, text: str, word: str) -> None:
    run = Path(config.runs) / "x"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(text)
    (run / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match=word):
        rundir.prepare(config)
    assert (run / "config.yaml").read_text() == text


@pytest.mark.parametrize(
    ("change", "key"),
    [({"runs": "/dev/null"}, "runs"), ({"runs": "/proc/none"}, "runs"), ({"name": "x" * 300}, "name")],
)
def test_directory_that_cannot_be_created_is_named(config: Config, change: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: .* cannot be written"):
        rundir.prepare(changed(config, **change))


def test_resume_never_and_resume_from_another_run(config: Config, tmp_path: Path) -> None:
    run = prepared(config)
    with pytest.raises(ConfigError, match="already holds a run"):
        rundir.prepare(changed(config, resume="never"))
    with pytest.raises(ConfigError, match="no checkpoint there"):
        rundir.start_from(changed(config, resume=str(tmp_path)), run, None)
    other = tmp_path / "other" / "checkpoints" / "step-00000007"
    other.mkdir(parents=True)
    (other / "manifest.json").write_text("{}")
    for named in (other, other.parent, other.parent.parent):
        assert rundir.start_from(changed(config, resume=str(named)), run, None) == other
    # Restarted with the same key, it resumes from its own newest checkpoint; an older one of its own is refused.
    older, own = run / "checkpoints" / "step-00000003", run / "checkpoints" / "step-00000009"
    for path in (older, own):
        path.mkdir()
        (path / "manifest.json").write_text("{}")
    assert rundir.start_from(changed(config, resume=str(other)), run, own) == own
    assert rundir.start_from(changed(config, resume=str(own)), run, own) == own
    with pytest.raises(ConfigError, match="is at step-00000009 already"):
        rundir.start_from(changed(config, resume=str(older)), run, own)


def test_second_process_cannot_train_in_the_directory(config: Config) -> None:
    _, lock = rundir.prepare(config)
    assert lock is not None
    with pytest.raises(ConfigError, match=f"another process trains in.*process {os.getpid()} on "):
        rundir.prepare(config)
    lock.close()
    rundir.prepare(config)


def test_lock_of_a_dead_build_is_deleted_and_that_of_a_running_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    dead, live = tmp_path / "dead_op" / "lock", tmp_path / "py311_cpu" / "live_op" / "lock"
    for lock in (dead, live):
        lock.parent.mkdir(parents=True)
        lock.touch()
    hour_ago = time.time() - 3600
    os.utime(dead, (hour_ago, hour_ago))
    messages = build_locks.remove_stale()
    assert not dead.exists()
    assert live.exists()
    assert [str(dead) in line or str(live) in line for line in messages] == [True, True]
    assert any("deleted" in line for line in messages)


def test_locks_are_looked_for_where_torch_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.cpp_extension import get_default_build_root

    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lock = Path(get_default_build_root(), "py311_cpu", "op", "lock")
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert list(build_locks.locks()) == [lock]


def test_lock_waits_for_an_earlier_attempt_of_the_same_job_but_not_for_another_job(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rundir, "_SAME_JOB_TIMEOUT", 1.5)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    run, lock = rundir.prepare(config)
    assert lock is not None
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"another process trains in .*, job 7\)"):
        rundir._lock(run)
    assert time.monotonic() - started > 1
    releasing = threading.Timer(0.5, lock.close)
    releasing.start()
    again = rundir._lock(run)
    assert again is not None
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"another process trains in .*, job 7\)"):
        rundir._lock(run)
    assert time.monotonic() - started < 1, "waits for another job"
    again.close()


def test_run_is_complete_for_the_same_config_until_a_result_is_gone(config: Config) -> None:
    run = prepared(config)
    assert not existing_run.is_complete(config)
    (run / "export").mkdir()
    for name in ("report.html", "finished.json"):
        (run / name).touch()
    assert existing_run.is_complete(config)
    # A run that ended at a target or for want of progress may have more to train under another config.
    assert not existing_run.is_complete(changed(config, evaluate={"limit": 5}))
    assert existing_run.is_complete(c.validate(c.dump(config)))
    (run / "report.html").unlink()
    assert not existing_run.is_complete(config)
    assert not existing_run.is_complete(changed(config, name="other"))


def test_directory_that_cannot_be_read_is_left_to_the_run(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(run: Path) -> str:
        raise PermissionError(13, "Permission denied", str(run))

    monkeypatch.setattr(existing_run, "_stored", denied)
    existing_run.check_early(config)
    with pytest.raises(ConfigError, match="cannot be written: Permission denied"):
        rundir.prepare(config)


def test_run_that_was_killed_while_it_made_its_directory_can_start_again(config: Config, tmp_path: Path) -> None:
    killed = []
    for event in at_each_write(tmp_path, lambda: rundir.prepare(config)):
        killed.append(event)
        run, lock = rundir.prepare(config)
        lock.close()
        assert c.load(run / "config.yaml") == config, event
        shutil.rmtree(tmp_path / "runs")
    assert "os.mkdir runs/x/checkpoints" in killed
    assert "os.mkdir runs/x" in killed
