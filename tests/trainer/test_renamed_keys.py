"""Renamed config keys: the old name still works, and one message names the new one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bellwether.trainer import config as c
from bellwether.trainer import rundir
from bellwether.trainer.config import Config, ConfigErrors, renamed

BASE = """
name: base
duration: 3 epochs
model: {kind: bert, size: tiny}
data: {kind: text, sequence_length: 64}
batch: {global: 256}
optimizer: {lr: 1e-3}
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(renamed, "_reported", set())
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def test_old_key_in_a_file_is_accepted(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    base.write_text(BASE.replace("lr: 1e-3", "lr: 1e-3, decay: l2") + "diagnose: {every: 5 steps}\n")
    config = c.load(base)
    assert config.optimizer.weight_decay_mode == "l2"
    assert str(config.trajectory.every) == "5 steps"
    assert [record.getMessage() for record in caplog.records] == [
        f"{base}: optimizer.decay was renamed to optimizer.weight_decay_mode; the old name works in this version only",
        f"{base}: diagnose was renamed to trajectory; the old name works in this version only",
    ]


@pytest.mark.parametrize(
    "override",
    ["optimizer.decay=l2", "optimizer={lr: 1e-3, decay: l2}", "phases=[{optimizer: {decay: l2}}]"],
)
def test_old_key_on_the_command_line_is_accepted(base: Path, override: str, caplog: pytest.LogCaptureFixture) -> None:
    (phase,) = c.phases(c.load(base, [override]))
    assert phase.optimizer.weight_decay_mode == "l2"
    assert "command line: optimizer.decay was renamed to optimizer.weight_decay_mode" in caplog.text


def test_old_key_of_one_phase_is_accepted(base: Path) -> None:
    config = c.load(base, ["phases=[{duration: 2 steps}, {}]", "phases.0.optimizer.decay=l2", "diagnose.every=5 steps"])
    assert config.phases[0] == {"duration": "2 steps", "optimizer": {"weight_decay_mode": "l2"}}
    assert str(config.trajectory.every) == "5 steps"


def test_old_and_new_names_merge_over_files(base: Path) -> None:
    base.write_text(BASE.replace("lr: 1e-3", "lr: 1e-3, decay: l2"))
    child = base.parent / "child.yaml"
    child.write_text("extends: base.yaml\noptimizer: {weight_decay_mode: independent}\n")
    assert c.load(child).optimizer.weight_decay_mode == "independent"
    assert c.load(base, ["optimizer.weight_decay_mode=decoupled"]).optimizer.weight_decay_mode == "decoupled"


def test_old_and_new_name_in_one_file_are_refused(base: Path) -> None:
    base.write_text(BASE.replace("lr: 1e-3", "lr: 1e-3, decay: l2, weight_decay_mode: l2"))
    with pytest.raises(ConfigErrors, match=r"optimizer\.decay: 'l2': was renamed to optimizer\.weight_decay_mode"):
        c.load(base)


def test_error_names_the_new_key(base: Path) -> None:
    with pytest.raises(ConfigErrors, match=r"^command line: optimizer\.weight_decay_mode: 'l3': not one of"):
        c.load(base, ["optimizer.decay=l3"])


def test_message_is_logged_once_and_on_one_process_only(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = ["optimizer.decay=l2"]
    for variable in ({"RANK": "1"}, {"RANK": "0", "BELLWETHER_WORLD_SIZE": "2"}):
        with monkeypatch.context() as environment:
            for name, value in variable.items():
                environment.setenv(name, value)
            c.load(base, old)
    c.load(base, old, quiet=True)
    assert not caplog.records
    c.load(base, old)
    c.load(base, old)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def prepared(config: Config) -> Path:
    run, lock = rundir.prepare(config)
    if lock is not None:
        lock.close()
    return run


def test_run_directory_of_an_older_version_is_resumed(base: Path) -> None:
    config = c.load(base, [f"runs={base.parent}/runs", "optimizer.weight_decay_mode=l2", "optimizer.name=adamw"])
    run = prepared(config)
    (run / "metrics.jsonl").touch()
    file = run / "config.yaml"
    text = file.read_text().replace("weight_decay_mode:", "decay:").replace("trajectory:", "diagnose:")
    file.write_text(text)
    prepared(config)
    assert "weight_decay_mode: l2" in file.read_text()

    file.write_text(text)
    with pytest.raises(ConfigErrors, match=r"optimizer\.weight_decay_mode: 'independent': .* was made with 'l2'"):
        rundir.prepare(
            c.load(base, [f"runs={base.parent}/runs", "optimizer={name: adamw, lr: 1e-3, decay: independent}"])
        )
