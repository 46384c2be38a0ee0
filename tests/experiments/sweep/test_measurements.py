"""The measurements table in each of its layouts: CSV, parquet and Shallue et al.'s directories."""

from __future__ import annotations

import csv
import json
import math
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from bellwether.experiments.analysis import convert, io, shallue
from bellwether.experiments.sweep import measurements
from bellwether.experiments.sweep.measurements import Target, Trial
from bellwether.trainer.config import ConfigError

TRIALS = [
    Trial(
        0, "digits", "cifar-resnet-8", "lamb", 64, 1, "complete", {"optimizer.lr": 1e-3, "schedule.kind": "cosine"},
        [
            {"step": 5, "samples": 320, "train/loss": 2.25, "val/accuracy": 0.1, "val/loss": 2.0},
            {"step": 10, "samples": 640, "train/loss": 1.0, "val/accuracy": 0.91, "val/loss": 0.5},
        ],
        epoch=1000, processes=2, seconds=12.5, run="trials/a",
    ),
    Trial(1, "digits", "cifar-resnet-8", "lamb", 64, 2, "pruned", {"optimizer.lr": 1e-2}, [], run="trials/b"),
    Trial(
        2, "digits", "cifar-resnet-8", "sgd", 128, 1, "diverged",
        {"optimizer.nesterov": True, "optimizer.momentum": 0.9, "optimizer.layer_decay": None},
        [{"step": 1, "samples": 128, "train/loss": math.inf}],
    ),
]  # fmt: skip


@pytest.mark.parametrize("name", ["m.csv", "m.parquet", "shallue"])
def test_written_measurements_are_read_back(tmp_path: Path, name: str) -> None:
    measurements.write(tmp_path / "source.csv", TRIALS)
    convert.convert(str(tmp_path / "source.csv"), str(tmp_path / name))
    assert io.read(tmp_path / name) == TRIALS
    with pytest.raises(ConfigError, match=r"TO: .* exists already"):
        convert.convert(str(tmp_path / "source.csv"), str(tmp_path / name))
    with pytest.raises(ConfigError, match=r"TO: .* cannot be written: No such file or directory"):
        convert.convert(str(tmp_path / "source.csv"), str(tmp_path / "missing" / "m.csv"))


def test_shallue_layout_numbers_trials_within_each_batch_size(tmp_path: Path) -> None:
    """The trials of a sweep, which alternates batch sizes, are therefore read back in another order."""
    given = [replace(TRIALS[0], trial=number, batch_size=batch) for number, batch in enumerate([128, 64, 128])]
    shallue.write(tmp_path / "out", given)
    assert [(trial.trial, trial.batch_size) for trial in shallue.read(tmp_path / "out")] == [
        (0, 64),
        (1, 128),
        (2, 128),
    ]


def test_convert_prints_the_numbers_of_trials_and_measurements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measurements.write(tmp_path / "one.csv", [replace(TRIALS[0], measurements=TRIALS[0].measurements[:1])])
    convert.convert(str(tmp_path / "one.csv"), str(tmp_path / "one.parquet"))
    assert capsys.readouterr().out.endswith("one.parquet: 1 trial, 1 measurement\n")


def test_published_shallue_layout_is_read(tmp_path: Path) -> None:
    """As in its README: without our keys, with other metric names, trials not in order."""
    study = tmp_path / "imagenet/resnet_50/nesterov_momentum/256"
    for number, status in [(10, "INFEASIBLE"), (2, "COMPLETE"), (3, "INCOMPLETE")]:
        (study / str(number)).mkdir(parents=True)
        about = {"parameters": {"learning_rate": 0.01}, "status": status, "steps": 1000, "trial_id": number}
        (study / str(number) / "metadata.json").write_text(json.dumps(about))
        (study / str(number) / "measurements.csv").write_text("step,val/classification_error\n0,0.999\n1000,0.99416\n")
    about = {"batch_size": 256, "dataset": "imagenet", "model": "resnet_50", "optimizer": "nesterov_momentum"}
    (study / "study.json").write_text(json.dumps(about))
    found = shallue.read(tmp_path)
    assert [trial.status for trial in found] == ["complete", "unfinished", "diverged"]
    assert found[0].parameters == {"learning_rate": 0.01}
    assert found[0].measurements[1] == {"step": 1000, "samples": 256_000, "val/classification_error": 0.99416}
    assert Target("val/classification_error", 0.995, False).reached(found[0]) == found[0].measurements[1]


def test_shallue_layout_is_written_as_published(tmp_path: Path) -> None:
    shallue.write(tmp_path / "out", TRIALS)
    study = tmp_path / "out/digits/cifar-resnet-8/lamb/64"
    about = json.loads((study / "study.json").read_text())
    assert (about["batch_size"], about["optimizer"], about["train_steps"]) == (64, "lamb", 10)
    assert about["parameter_configs"]["optimizer.lr"]["max_value"] == 0.01
    assert json.loads((study / "2/metadata.json").read_text())["status"] == "INCOMPLETE"
    with open(study / "1/measurements.csv", newline="") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["5", "10"]
    infeasible = tmp_path / "out/digits/cifar-resnet-8/sgd/128/1/metadata.json"
    assert json.loads(infeasible.read_text())["status"] == "INFEASIBLE"


def test_status_of_older_versions_is_read(tmp_path: Path) -> None:
    """Pruned trials were called beaten."""
    file = tmp_path / "old.csv"
    file.write_text("trial,batch_size,step,status\n0,64,1,beaten\n")
    assert [trial.status for trial in measurements.read(file)] == ["pruned"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("trial,batch_size\n0,64\n", "no column step"),
        ("trial,batch_size,step\nx,64,1\n", "line 2: trial: 'x' is not a number"),
        ("trial,batch_size,step\n0,none,1\n", "batch_size: 'none' is not a whole number above 0"),
        ("trial,batch_size,step\n0,32.5,1\n", "batch_size: 32.5 is not a whole number above 0"),
        ("trial,batch_size,step,val/loss\n0,64,1,low\n", "trial 0: val/loss: 'low' is not a number"),
        ("trial,batch_size,step,epoch\n0,64,1,long\n", "trial 0: epoch: 'long' is not a number"),
        ("trial,batch_size,step,seed\n0,64,1,nan\n", "trial 0: seed: nan is not a number"),
        ("trial,batch_size,step,status\n0,64,1,good\n", "status: 'good' is unknown; write one of complete"),
    ],
)
def test_error_in_a_table_names_its_location(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "wrong.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        measurements.read(file)


OTHER = {
    "dataset": "mnist", "model": "lenet", "optimizer": "sgd", "batch_size": 128, "seed": 2, "status": "pruned", "epoch": None,
    "processes": 4, "seconds": 25.0, "run": "trials/c", "parameters": {"optimizer.lr": 0.1, "schedule.kind": "cosine"},
}  # fmt: skip


@pytest.mark.parametrize("field", OTHER)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_two_trials_with_the_same_number_are_refused(tmp_path: Path, field: str, suffix: str) -> None:
    """As in the concatenated tables of two sweeps."""
    file, other = tmp_path / f"m{suffix}", replace(TRIALS[0], **{field: OTHER[field]})
    measurements.write(file, [TRIALS[0], TRIALS[1], other])
    column, was, now = field, getattr(TRIALS[0], field), OTHER[field]
    if field == "parameters":
        column, was, now = "parameter/optimizer.lr", 0.001, 0.1
    message = f"trial 0: {column}: {was!r} in one row and {now!r} in another; give each trial its own number"
    with pytest.raises(ConfigError, match=re.escape(message)):
        measurements.read(file)


def test_equal_values_may_be_written_differently(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_text("trial,batch_size,step,parameter/a\n0,64,1,nan\n0,64.0,2,NaN\n")
    assert [len(trial.measurements) for trial in measurements.read(file)] == [2]


@pytest.mark.parametrize("text", ["accuracy > 0.9", "val/loss", "val/loss <= low", "val/loss <= nan"])
def test_text_that_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"--target: {text!r}: ") + r".*write 'val/loss <= 2.5'"):
        Target.parse(text)


@pytest.mark.parametrize(
    "text, highest, message",
    [
        ("val/accuracy >= 90", 0.8, "accuracy lies within 0 to 1; write 'val/accuracy >= 0.9'"),
        (
            "val/accuracy <= 0.9",
            0.8,
            "an accuracy is to be at least, a loss or a perplexity at most; write 'val/accuracy >= 0.9'",
        ),
        ("val/loss >= 2", 0.8, "no run measured val/loss; they have val/accuracy"),
        ("val/accuracy >= 75.9", 76.1, None),  # in percent, in a table written by other software
        ("val/accuracy >= 0.9", 0.8, None),
    ],
)
def test_target_that_does_not_fit_the_measurements_is_refused(text: str, highest: float, message: str | None) -> None:
    rows = [{"step": step, "samples": step, "val/accuracy": highest * step} for step in (0, 1)]
    trial = replace(TRIALS[0], measurements=rows)
    with pytest.raises(ConfigError, match=re.escape(f"--target: {text!r}: {message}")) if message else nullcontext():
        io.check_measured(Target.parse(text), [trial])


def test_unknown_metric_may_have_a_target_in_either_direction() -> None:
    assert Target.parse("val/classification_error <= 30").value == 30
    assert Target.parse("val/bleu >= 25").at_least


def test_target_is_reached_at_the_first_measurement_that_satisfies_it() -> None:
    assert Target.parse("val/accuracy>=0.9").reached(TRIALS[0]) == TRIALS[0].measurements[1]
    assert Target.parse("val/loss <= 0.4").reached(TRIALS[0]) is None
    assert Target.parse("val/loss <= 0.4").best(TRIALS[0]) == 0.5
    assert Target.parse("val/loss <= 0.4").best(TRIALS[1]) is None
