"""``bellwether fit``: known curves are recovered, files of others are read, errors are named."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from bellwether import cli
from bellwether.experiments.analysis import convergence_points
from bellwether.experiments.analysis.critical_batch import fit
from bellwether.experiments.analysis.points import Points
from bellwether.trainer.config import ConfigError

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "rcps_bert_4.1.0.json"


def runs(
    s_min: float, b_crit: float, sizes: list[int], seeds: int, noise: float, seed: int
) -> tuple[list[float], list[float]]:
    random = np.random.default_rng(seed)
    batches = np.repeat(np.array(sizes, dtype=float), seeds)
    samples = s_min * (1 + batches / b_crit) * np.exp(noise * random.standard_normal(batches.size))
    return batches.tolist(), samples.tolist()


def test_fit_recovers_an_exact_curve() -> None:
    found = fit(*runs(3e5, 700.0, [16, 64, 256, 1024, 4096], 1, 0.0, 0))
    assert found.s_min == pytest.approx(3e5, rel=1e-4)
    assert found.b_crit == pytest.approx(700, rel=1e-4)
    assert found.shape == pytest.approx(1, rel=1e-3)
    # Five single runs do not tell how much they vary, however well they fit.
    assert 500 < found.b_crit_low < 700 < found.b_crit_high < 900
    assert found.spread < 1e-4
    assert found.warnings == []
    assert found.samples(700) == pytest.approx(6e5, rel=1e-4)
    assert found.steps(1400) == pytest.approx(9e5 / 1400, rel=1e-4)


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_confidence_interval_has_its_nominal_coverage(noise: float) -> None:
    sizes = [2**n for n in range(4, 13)]
    covered = 0
    for seed in range(60):
        found = fit(*runs(1e5, 500.0, sizes, 5, noise, seed))
        covered += found.b_crit_low <= 500 <= found.b_crit_high
    # 90 % of 60 is 54; 47 is three standard deviations below.
    assert covered >= 47


def test_fit_is_scale_invariant_and_deterministic() -> None:
    batches, samples = runs(1e5, 500.0, [16, 64, 256, 1024], 3, 0.1, 1)
    one, other = fit(batches, samples), fit(batches, [1e6 * s for s in samples])
    assert other.b_crit == pytest.approx(one.b_crit, rel=1e-9)
    assert other.b_crit_high == pytest.approx(one.b_crit_high, rel=1e-6)
    assert fit(batches, samples) == one


@pytest.mark.parametrize(
    ("sizes", "b_crit", "message"),
    [
        ([8, 16, 32, 64, 128], 1e9, "the critical batch size lies above|set no upper bound"),
        ([8, 16, 32, 64, 128], 400.0, "above all measured batch sizes|set no upper bound|lies above"),
        ([1024, 2048, 4096, 8192], 50.0, "below all measured batch sizes"),
        ([16, 4096], 500.0, "2 batch sizes are few for a curve"),
    ],
)
def test_fit_warns_if_the_data_do_not_determine_the_curve(sizes: list[int], b_crit: float, message: str) -> None:
    found = fit(*runs(1e5, b_crit, sizes, 4, 0.03, 3))
    assert any(re.search(message, warning) for warning in found.warnings), found
    assert json.loads(json.dumps(found.json(), allow_nan=False))["level"] == 0.9


def test_critical_batch_is_infinite_if_samples_do_not_grow() -> None:
    found = fit([8, 16, 32, 64], [1000, 990, 985, 980])
    assert math.isinf(found.b_crit)
    assert found.json()["b_crit"] is None
    assert found.s_min == pytest.approx(989, abs=3)
    assert math.isinf(fit([1, 100], [1000, 1000]).b_crit)  # despite rounding


@pytest.mark.parametrize(
    ("batches", "samples", "message"),
    [([8, 8], [1, 2], "two or more batch sizes"), ([8], [1, 2], "one of each"), ([8, 0], [1, 2], "run 2: batch 0, 2 samples: both must be positive"), ([8, 9], [1, math.nan], "positive"), ([], [], "two or more batch sizes")],
)  # fmt: skip
def test_fit_refuses_too_few_batch_sizes_and_invalid_numbers(
    batches: list[float], samples: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(batches, samples)


def test_mlperf_bert_reference_points(capsys: pytest.CaptureFixture[str]) -> None:
    if not REFERENCE.exists():
        pytest.skip(f"no reference data at {REFERENCE}")
    assert cli.main(["fit", str(REFERENCE), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    # An independent relative least-squares fit of S_min (1 + B / B_crit) gave about 12,700; it does not fit, and the knee is sharper.
    assert result["b_crit"] == pytest.approx(13_400, rel=0.02)
    assert result["b_crit_low"] < 12_700 < result["b_crit_high"]
    assert result["checks"]["lack_of_fit"]["f"] > 30
    # The smaller batch sizes alone gave 15,535 to 45,709 before, which excluded the result of all of them.
    small = convergence_points.read(REFERENCE)
    few = [(b, s) for b, s in zip(small.batches, small.samples, strict=True) if b <= 6144]
    assert fit(*zip(*few, strict=True)).b_crit_low < result["b_crit"]
    assert result["b_crit_high"] / result["b_crit_low"] < 2
    assert result["runs"] == 263
    assert cli.main(["fit", str(REFERENCE)]) == 0
    assert "13 batch sizes" in capsys.readouterr().out
    assert cli.main(["fit", str(REFERENCE), "--unit", "epochs", "--dataset-size", "3000000"]) == 2
    assert "those are samples; write --unit samples without --dataset-size" in capsys.readouterr().err


def test_epochs_are_distinguished_from_samples_and_need_the_dataset_size(tmp_path: Path) -> None:
    file = tmp_path / "rcps_resnet.json"
    file.write_text(json.dumps({f"r{b}": {"BS": b, "Epochs to converge": [37 + b / 512, 38]} for b in (512, 1024)}))
    with pytest.raises(ConfigError, match="dataset-size"):
        convergence_points.read(file)
    found = convergence_points.read(file, dataset_size=1000)
    assert found.samples == [38_000, 38_000, 39_000, 38_000]
    with pytest.raises(ConfigError, match="those are epochs"):
        convergence_points.read(file, unit="samples")
    # Where the numbers are ambiguous, the option decides.
    file.write_text(json.dumps({"r": {"BS": 512, "Epochs to converge": [1500]}}))
    assert convergence_points.read(file).samples == [1500]
    assert convergence_points.read(file, unit="epochs", dataset_size=1000).samples == [1_500_000]


def test_table_with_one_row_per_run_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "runs.csv"
    file.write_text("batch_size,steps,reached\n8,1000,true\n8,1100,Yes\n64,200,Y\n64,,false\n512,90,1\n4096,80,TRUE\n")
    found = convergence_points.read(file)
    assert found.batches == [8, 8, 64, 512, 4096]
    assert found.samples == [8000, 8800, 12800, 46080, 327680]
    assert found.missed == 1
    assert cli.main(["fit", str(file)]) == 0
    assert "5 runs at 4 batch sizes; 1 run missed it after an unknown length: left out" in capsys.readouterr().out
    file.write_text("batch_size,samples,reached\n8,10,no\n8,11,n\n8,12,N\n8,13,0\n64,20,yes\n")
    assert convergence_points.read(file) == Points(
        [8, 8, 8, 8, 64], [10, 11, 12, 13, 20], [False] * 4 + [True], [0.0] * 5
    )
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"batch_size": [8, 64], "samples": [10.0, 20.0], "reached": [True, False]})
    pyarrow.parquet.write_table(table, tmp_path / "runs.parquet")
    assert convergence_points.read(tmp_path / "runs.parquet") == Points([8, 64], [10, 20], [True, False], [0.0, 0.0])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "batch_size\n8\n", "its columns are batch_size; write batch_size and one of"),
        ("a.csv", "batch_size,samples\n8,\n", "line 2 has no batch size, or no samples"),
        ("a.csv", "batch_size;samples\n8;1\n", "its columns are batch_size;samples"),
        ("a.csv", "", "its columns are none"),
        ("a.csv", "batch_size,samples\n", "has no runs\n"),
        ("a.csv", "batch_size,samples,reached\n8,,no\n", "has no run that reached its target, and 1 that missed it"),
        ("a.csv", "batch_size,samples\n8,many\n", "line 2: samples: 'many' is not a number above 0"),
        ("a.csv", "batch_size,samples\n8,9\n16,-3\n", "line 3: samples: '-3' is not a number above 0"),
        ("a.csv", "batch_size,samples\n8,inf\n", "line 2: samples: 'inf' is not a number above 0"),
        ("a.csv", "batch_size,samples\n0,9\n", "line 2: batch_size: '0' is not a number above 0"),
        ("a.csv", "batch_size,samples\n32.5,9\n", "line 2: batch_size: '32.5' is not a whole number"),
        ("a.csv", "batch_size,samples,reached\n8,9,maybe\n", "line 2: reached: 'maybe' is neither true nor false"),
        ("a.csv", "batch_size,samples,reached\n8,9,yes\n8,9,\n", "line 3: reached is empty; write true or false"),
        ("a.csv", "trial,batch_size,samples,val/loss\n0,8,9,1\n0,8,18,1\n", "but no column step; add step"),
        ("a.csv", "trial,batch_size,step\n", "has no runs\n"),
        ("a.csv", "batch_size,samples\n8,1\n", "two or more batch sizes"),
        ("a.json", "[]", "is not an MLPerf file"),
        ("a.json", '{"a": {"BS": "x", "Epochs to converge": [1]}}', "a: BS: 'x' is not a number above 0"),
        (
            "a.json",
            '{"a": {"BS": 8, "Epochs to converge": [4, 0]}}',
            "a: 'Epochs to converge': 0 is not a number above 0",
        ),
        ("a.json", '{"a": {"BS": 8, "Epochs to converge": []}}', "has no runs\n"),
        ("a.json", "{", "cannot be read"),
        ("a.parquet", "no", "cannot be read"),
        ("a.txt", "", "has an unknown suffix"),
        ("none.csv", None, "No such file"),
    ],
)
def test_error_in_a_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    assert cli.main(["fit", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


MEASURED = "trial,batch_size,step,samples,val/loss\n0,8,5,40,3\n0,8,10,80,2\n1,16,7,112,2\n2,32,6,192,2\n3,64,5,320,2\n"
FILES = {
    "runs.csv": "batch_size,samples\n8,10\n16,12\n",
    "rcps_a.json": '{"a": {"BS": 8, "Epochs to converge": [8000]}, "b": {"BS": 16, "Epochs to converge": [9000]}}',
    "measured.csv": MEASURED,
}


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("runs.csv", "--unit", "epochs", "applies to MLPerf files, and {} has one row per run"),
        ("runs.csv", "--dataset-size", "50", "applies to files that count epochs, and {} counts samples"),
        ("runs.csv", "--target", "val/loss <= 2", "applies to a sweep's measurements, and {} has one row per run"),
        ("runs.csv", "--optimizer", "lamb", "applies to a sweep's measurements, and {} has one row per run"),
        ("rcps_a.json", "--dataset-size", "50", "applies to files that count epochs, and {} counts samples"),
        ("rcps_a.json", "--target", "val/loss <= 2", "applies to a sweep's measurements, and {} is an MLPerf file"),
        ("rcps_a.json", "--optimizer", "lamb", "applies to a sweep's measurements, and {} is an MLPerf file"),
        ("measured.csv", "--unit", "epochs", "applies to MLPerf files, and {} holds a sweep's measurements"),
        ("measured.csv", "--dataset-size", "50", "applies to files that count epochs, and {} holds a sweep's"),
    ],
)
def test_option_that_does_not_apply_to_a_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, option: str, value: str, message: str
) -> None:
    file = tmp_path / name
    file.write_text(FILES[name])
    target = ["--target", "val/loss <= 2"] if name == "measured.csv" else []
    assert cli.main(["fit", str(file), *target]) == 0
    assert cli.main(["fit", str(file), *target, option, value]) == 2
    error = capsys.readouterr().err
    assert f"{option}: " in error
    assert message.format(file) in error
    assert "remove it" in error


@pytest.mark.parametrize("command", ["fit", "report"])
def test_target_whose_metric_was_not_measured_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    file = tmp_path / "measurements.csv"
    file.write_text(MEASURED)
    assert cli.main([command, str(file), "--target", "foo >= 1"]) == 2
    assert "--target: 'val/foo >= 1': no run measured val/foo; they have val/loss" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_directory_without_measurements_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", str(tmp_path)]) == 2
    assert "holds neither a measurements.csv nor a study.json" in capsys.readouterr().err


def test_table_saved_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    (tmp_path / "runs.CSV").write_text(
        "\ufeffbatch_size, steps, evaluated_every\n8, 10, 2\n16, 6, 2\n", encoding="utf-8"
    )
    assert convergence_points.read(tmp_path / "runs.CSV") == Points([8, 16], [80, 96], [True, True], [16, 32])


def test_fit_of_two_batch_sizes_has_no_interval_and_a_flat_curve_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "runs.csv"
    file.write_text("batch_size,samples\n8,10\n16,12\n")
    assert cli.main(["fit", str(file)]) == 0
    out = capsys.readouterr().out
    assert "probability" not in out
    assert "give no error estimate" in out
    assert json.dumps(fit([8, 16], [10, 12]).json()["b_crit_high"]) == "null"
    file.write_text("batch_size,samples\n8,10\n16,10\n32,10\n")
    assert cli.main(["fit", str(file)]) == 0
    assert "B_crit  above 32" in capsys.readouterr().out
