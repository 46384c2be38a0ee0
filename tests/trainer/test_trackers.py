"""Experiment trackers: resuming a run also resumes its run in each, and no tracker can end a run.

wandb, mlflow and trackio are tested where they are installed (``pip install wandb mlflow-skinny trackio``).
"""

from __future__ import annotations

import json
import logging
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bellwether.trainer import trackers
from bellwether.trainer.config import ConfigError, validate
from bellwether.trainer.metrics import Metrics, read
from bellwether.trainer.trackers import IDS, check_installed

CONFIG = {"optimizer": {"name": "lamb", "lr": 0.01}, "log": {"trackers": ["wandb"]}}


def launch(run: Path, names: list[str], first: int, last: int) -> None:
    """One process of a run: steps first+1..last."""
    metrics = Metrics(run, names, name="digits", config=CONFIG)
    metrics.write("start", step=first, samples=8 * first)
    for step in range(first + 1, last + 1):
        metrics.write("train", step=step, samples=8 * step, phase=0, loss=1.0 / step, lr=1e-3)
    metrics.write("eval", step=last, samples=8 * last, phase=0, loss=0.5, accuracy=0.75, examples=10)
    metrics.close()


def wandb_values(run: Path, run_id: str) -> list[tuple[int, float]]:
    from wandb.proto import wandb_internal_pb2

    found = []
    for file in sorted((run / "logs" / "wandb").glob(f"offline-run-*-{run_id}/*.wandb")):
        for data in leveldb_records(file.read_bytes()[7:]):  # after the magic number
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            if "train/loss" in row:
                found.append((row["_step"], row["train/loss"]))
    return found


def leveldb_records(log: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, in blocks of 32 KiB: checksum (4), length (2), type (1), data."""
    at, record = 0, b""
    while at + 7 <= len(log):
        if 32768 - (at + 7) % 32768 < 7:  # the rest of a block
            at += 32768 - (at + 7) % 32768
        length, kind = struct.unpack("<HB", log[at + 4 : at + 7])
        record += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""


def mlflow_values(run: Path, run_id: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient()
    stored = client.get_run(run_id)
    assert stored.info.run_name == "digits"
    assert stored.data.params["optimizer.lr"] == "0.01"
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, "train/loss")]


def trackio_values(run: Path, run_id: str) -> list[tuple[int, float]]:
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_run_config(trackers.PROJECT, run_id)["optimizer.lr"] == 0.01
    return [
        (row["step"], row["train/loss"])
        for row in SQLiteStorage.get_logs(trackers.PROJECT, run_id)
        if "train/loss" in row
    ]


VALUES = {"wandb": wandb_values, "mlflow": mlflow_values, "trackio": trackio_values}


@pytest.mark.parametrize("name", VALUES)
def test_resuming_a_run_resumes_its_tracker_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = tmp_path / "run"
    launch(run, [name], 0, 3)
    ids = json.loads((run / IDS).read_text())
    launch(run, [name], 3, 5)
    assert json.loads((run / IDS).read_text()) == ids
    deadline = time.monotonic() + 20  # wandb's own process writes its file
    while len(found := VALUES[name](run, ids[name])) < 5 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [step for step, _ in found] == [1, 2, 3, 4, 5]
    assert [value for _, value in found] == pytest.approx([1.0 / step for step in range(1, 6)])


def test_missing_package_is_one_error_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "mlflow" else object())
    check_installed(["tensorboard", "wandb"])
    with pytest.raises(ConfigError, match=r"log\.trackers: 'mlflow': is not installed; pip install mlflow, or remove"):
        check_installed(["tensorboard", "mlflow"])


class Recording:
    """A tracker that keeps what it gets, as MLflow keeps two values of one step."""

    main_process_only = True
    tracker = None
    values: list[tuple[int, str]] = []  # noqa: RUF012

    def start(self) -> None:
        pass

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        pass

    def log(self, values: dict[str, float], step: int) -> None:
        self.values.append((step, min(values).partition("/")[0]))

    def finish(self) -> None:
        pass


def test_repeated_steps_are_sent_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    monkeypatch.setitem(trackers.OPEN, "wandb", lambda tracking, launch: (Recording(), lambda run: "a1"))
    Recording.values.clear()
    launch(tmp_path, ["wandb"], 0, 3)
    launch(tmp_path, ["wandb"], 1, 4)
    assert sorted(Recording.values) == [
        (1, "train"),
        (2, "train"),
        (3, "eval"),
        (3, "train"),
        (4, "eval"),
        (4, "train"),
    ]


class Broken:
    """A tracker that fails when it is used."""

    main_process_only = True
    tracker = None

    def start(self) -> None:
        pass

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        assert values == {"optimizer.name": "lamb", "optimizer.lr": 0.01, "log.trackers": "['wandb']"}

    def log(self, values: dict[str, float], step: int) -> None:
        raise OSError("no network")

    def finish(self) -> None:
        raise OSError("no network")


def test_failing_tracker_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    monkeypatch.setitem(trackers.OPEN, "wandb", lambda tracking, launch: (Broken(), lambda run: "a1"))
    with caplog.at_level(logging.WARNING):
        launch(tmp_path, ["wandb"], 0, 3)
    assert [record.getMessage() for record in caplog.records] == [
        "wandb failed at step 1 and gets no more values: no network"
    ]
    assert len(read(tmp_path).train) == 3


def test_tracker_that_cannot_start_is_a_config_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(tracking: Any, launch: trackers.TrackerLaunch) -> Any:
        raise OSError("no api key")

    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    monkeypatch.setitem(trackers.OPEN, "wandb", cannot)
    with pytest.raises(
        ConfigError, match=r"log\.trackers: 'wandb': cannot start: no api key; fix it, or remove wandb$"
    ):
        launch(tmp_path, ["tensorboard", "wandb"], 0, 1)


BASE = {
    "name": "a", "duration": "1 epochs", "model": {"kind": "resnet"}, "data": {"kind": "images", "source": "digits"},
    "batch": {"global": 8}, "optimizer": {"name": "sgd", "lr": 0.1},
}  # fmt: skip
LOGS = [
    ({}, ["tensorboard"]),
    ({"trackers": []}, []),
    ({"trackers": ["wandb", "mlflow"]}, ["wandb", "mlflow"]),
    ({"tensorboard": True}, ["tensorboard"]),
    ({"tensorboard": False}, []),
]


@pytest.mark.parametrize(("log", "expected"), LOGS, ids=[str(log) for log, _ in LOGS])
def test_trackers_of_a_config(log: dict[str, Any], expected: list[str]) -> None:
    config = validate({**BASE, "log": log})
    assert config.log.trackers == expected
