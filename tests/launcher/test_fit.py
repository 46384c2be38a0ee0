"""The critical batch: found again where it is known, told where it cannot be, and read from others' files."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from launcher import cli
from launcher.sweep import points
from launcher.sweep.critical import fit
from trainer.config import ConfigError

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "rcps_bert_4.1.0.json"


def runs(
    s_min: float, b_crit: float, sizes: list[int], seeds: int, noise: float, seed: int
) -> tuple[list[float], list[float]]:
    random = np.random.default_rng(seed)
    batches = np.repeat(np.array(sizes, dtype=float), seeds)
    samples = s_min * (1 + batches / b_crit) * np.exp(noise * random.standard_normal(batches.size))
    return batches.tolist(), samples.tolist()


def test_without_noise_the_curve_is_found_to_the_digit() -> None:
    found = fit(*runs(3e5, 700.0, [16, 64, 256, 1024, 4096], 1, 0.0, 0))
    assert found.s_min == pytest.approx(3e5, rel=1e-9)
    assert found.b_crit == pytest.approx(700, rel=1e-9)
    assert found.b_crit_low == pytest.approx(700, rel=1e-6)
    assert found.b_crit_high == pytest.approx(700, rel=1e-6)
    assert found.spread < 1e-9
    assert found.warnings == []
    assert found.samples(700) == pytest.approx(6e5)
    assert found.steps(1400) == pytest.approx(9e5 / 1400)


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_the_interval_holds_the_truth_as_often_as_it_says(noise: float) -> None:
    sizes = [2**n for n in range(4, 13)]
    held = 0
    for seed in range(60):
        found = fit(*runs(1e5, 500.0, sizes, 5, noise, seed), seed=seed, draws=300)
        held += found.b_crit_low <= 500 <= found.b_crit_high
    # 90 % of 60 is 54; 47 is three standard deviations below.
    assert held >= 47


def test_the_scale_of_the_samples_does_not_matter_and_the_same_seed_gives_the_same() -> None:
    batches, samples = runs(1e5, 500.0, [16, 64, 256, 1024], 3, 0.1, 1)
    one, other = fit(batches, samples), fit(batches, [1e6 * s for s in samples])
    assert other.b_crit == pytest.approx(one.b_crit, rel=1e-9)
    assert other.b_crit_high == pytest.approx(one.b_crit_high, rel=1e-6)
    assert fit(batches, samples) == one


@pytest.mark.parametrize(
    ("sizes", "b_crit", "words"),
    [
        ([8, 16, 32, 64, 128], 1e9, "the critical batch lies beyond|set no upper bound"),
        ([8, 16, 32, 64, 128], 400.0, "beyond all that was measured|set no upper bound|lies beyond"),
        ([1024, 2048, 4096, 8192], 50.0, "below all that was measured"),
        ([16, 4096], 500.0, "2 batches hold two parameters badly"),
    ],
)
def test_it_says_when_the_data_cannot_tell(sizes: list[int], b_crit: float, words: str) -> None:
    found = fit(*runs(1e5, b_crit, sizes, 4, 0.03, 3))
    assert any(re.search(words, warning) for warning in found.warnings), found
    assert json.loads(json.dumps(found.json(), allow_nan=False))["level"] == 0.9


def test_samples_that_fall_with_the_batch_leave_it_without_bound() -> None:
    found = fit([8, 16, 32, 64], [1000, 990, 985, 980])
    assert math.isinf(found.b_crit)
    assert found.json()["b_crit"] is None
    assert found.s_min == pytest.approx(989, abs=3)
    assert math.isinf(fit([1, 100], [1000, 1000]).b_crit)  # not what rounding makes of it


@pytest.mark.parametrize(
    ("batches", "samples", "words"),
    [([8, 8], [1, 2], "one batch alone"), ([8], [1, 2], "one of each"), ([8, 0], [1, 2], "positive"), ([8, 9], [1, math.nan], "positive"), ([], [], "one batch alone")],
)  # fmt: skip
def test_what_holds_no_curve_is_refused(batches: list[float], samples: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit(batches, samples)


def test_mlperfs_bert(capsys: pytest.CaptureFixture[str]) -> None:
    if not REFERENCE.exists():
        pytest.skip(f"no reference data at {REFERENCE}")
    assert cli.main(["fit", str(REFERENCE), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    # A relative least-squares fit made apart from this one came to about 12,700.
    assert said["b_crit"] == pytest.approx(12_700, rel=0.01)
    assert said["b_crit_low"] < 12_700 < said["b_crit_high"]
    assert said["b_crit_high"] / said["b_crit_low"] < 2
    assert said["runs"] == 263
    assert cli.main(["fit", str(REFERENCE)]) == 0
    assert "13 batches" in capsys.readouterr().out
    assert cli.main(["fit", str(REFERENCE), "--unit", "epochs"]) == 2
    assert "--dataset-size" in capsys.readouterr().err


def test_epochs_are_told_from_samples_and_need_the_dataset(tmp_path: Path) -> None:
    file = tmp_path / "rcps_resnet.json"
    file.write_text(json.dumps({f"r{b}": {"BS": b, "Epochs to converge": [37 + b / 512, 38]} for b in (512, 1024)}))
    with pytest.raises(ConfigError, match="dataset-size"):
        points.read(file)
    found = points.read(file, dataset_size=1000)
    assert found.samples == [38_000, 38_000, 39_000, 38_000]
    with pytest.raises(ConfigError, match="those are epochs"):
        points.read(file, unit="samples")


def test_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "runs.csv"
    file.write_text(
        "batch_size,steps,reached\n8,1000,true\n8,1100,True\n64,200,true\n64,,false\n512,90,true\n4096,80,true\n"
    )
    found = points.read(file)
    assert found.batches == [8, 8, 64, 512, 4096]
    assert found.samples == [8000, 8800, 12800, 46080, 327680]
    assert found.missed == 1
    assert cli.main(["fit", str(file)]) == 0
    assert "1 that missed their target" in capsys.readouterr().out
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"batch_size": [8, 64], "samples": [10.0, 20.0], "reached": [True, False]})
    pyarrow.parquet.write_table(table, tmp_path / "runs.parquet")
    assert points.read(tmp_path / "runs.parquet") == points.Points([8], [10], 1)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "batch_size\n8\n", "its columns are batch_size; there must be"),
        ("a.csv", "batch_size,samples\n8,\n", "line 2 has no batch, or nothing"),
        ("a.csv", "batch_size;samples\n8;1\n", "its columns are batch_size;samples"),
        ("a.csv", "", "its columns are none"),
        ("a.csv", "batch_size,samples\n", "holds no run"),
        ("a.csv", "batch_size,samples\n8,many\n", "line 2: batch_size and samples must be numbers"),
        ("a.csv", "batch_size,samples\n8,1\n", "one batch alone"),
        ("a.json", "[]", "is no file of MLPerf's"),
        ("a.json", '{"a": {"BS": "x", "Epochs to converge": [1]}}', "must be numbers"),
        ("a.json", "{", "cannot be read"),
        ("a.parquet", "no", "cannot be read"),
        ("a.txt", "", "is of no kind known here"),
        ("none.csv", None, "No such file"),
    ],
)
def test_a_wrong_file_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str | None, words: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    assert cli.main(["fit", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_what_spreadsheets_do_to_a_table(tmp_path: Path) -> None:
    (tmp_path / "runs.CSV").write_text("\ufeffbatch_size, steps\n8, 10\n16, 6\n", encoding="utf-8")
    assert points.read(tmp_path / "runs.CSV") == points.Points([8, 16], [80, 96])


def test_two_batches_leave_no_interval_and_no_rise_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "runs.csv"
    file.write_text("batch_size,samples\n8,10\n16,12\n")
    assert cli.main(["fit", str(file)]) == 0
    out = capsys.readouterr().out
    assert "confidence" not in out
    assert "nothing to tell the error by" in out
    assert json.dumps(fit([8, 16], [10, 12]).json()["b_crit_high"]) == "null"
    file.write_text("batch_size,samples\n8,10\n16,10\n32,10\n")
    assert cli.main(["fit", str(file)]) == 0
    assert "B_crit  beyond 32" in capsys.readouterr().out


def test_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipe", "lamb-bert", "--batch", "512,1024,65536", "--json"]) == 0
    out, error = capsys.readouterr()
    said = json.loads(out)
    assert [row["batch"] for row in said] == [512, 1024, 65536]
    assert said[0]["lr"] == pytest.approx(6.25e-4)
    assert said[0]["warmup_fraction"] == pytest.approx(1 / 320)
    assert "nobody has shown" in error
    assert cli.main(["recipe", "lamb-resnet50", "--json"]) == 0
    assert [row["warmup_epochs"] for row in json.loads(capsys.readouterr().out)] == [
        0.3125,
        0.625,
        1.25,
        2.5,
        5,
        10,
        20,
    ]
    assert cli.main(["recipe", "nvidia-bert-large"]) == 0
    assert "0.2843" in capsys.readouterr().out
    assert cli.main(["recipe"]) == 0
    assert "mlperf-bert" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["recipe", "lamb-bert", "--batch", "4,096"])
    assert "without commas in it" in capsys.readouterr().err
    assert cli.main(["recipe", "--batch", "512"]) == 2
    assert "of which recipe?" in capsys.readouterr().err
    assert cli.main(["recipe", "lamb-brt"]) == 2
    assert "did you mean lamb-bert?" in capsys.readouterr().err
