"""All reference convergence points of mlcommons/logging (commit 7bbf792) are read in their unit, or the missing option is named.

``mlperf_rcps.csv``: of each ``rcps_*.json`` the least number at its smallest batch and the largest at its largest, what they count, and
the samples of the first.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from bellwether.experiments.analysis import convergence_points
from bellwether.trainer.config import ConfigError

with open(Path(__file__).with_name("mlperf_rcps.csv"), newline="") as stream:
    FACTS = list(csv.DictReader(stream))


def write(path: Path, fact: dict[str, str]) -> Path:
    points = {
        name: {"Benchmark": fact["benchmark"], "BS": int(fact[batch]), fact["key"]: [float(fact[count])] * 2}
        for name, batch, count in (("a", "batch", "least"), ("b", "other_batch", "most"))
    }
    file = path / Path(fact["file"]).name
    file.write_text(json.dumps(points))
    return file


def test_every_file_of_mlperf_is_read_or_its_missing_option_named(tmp_path: Path) -> None:
    assert len(FACTS) == 99
    for fact in FACTS:
        file = write(tmp_path, fact)
        if not fact["samples_least"]:
            with pytest.raises(ConfigError, match="counts epochs; write --dataset-size N"):
                convergence_points.read(file)
            assert convergence_points.read(file, dataset_size=1000).samples[0] == 1000 * float(fact["least"])
            continue
        found = convergence_points.read(file)
        assert found.samples[0] == pytest.approx(float(fact["samples_least"]), abs=0.5), fact["file"]
        # No run takes less than one batch.
        assert all(samples >= batch for samples, batch in zip(found.samples, found.batches, strict=True)), fact["file"]
        assert found.workload == f"MLPerf {fact['benchmark']}"


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        ({"BS": 512, "Epochs to converge": [5000]}, {"unit": "epochs"}, "counts epochs; write --dataset-size"),
        ({"BS": 2048, "Epochs to converge": [1750]}, {}, "which is less than a batch of samples, and many for epochs; write --unit steps"),
        ({"BS": 2048, "Epochs to converge": [1750]}, {"unit": "samples"}, "those are epochs or steps"),
        ({"BS": 256, "samples to converge": [9000], "Benchmark": "flux1"}, {"dataset_size": 9}, "counts samples; remove it"),
        ({"BS": 256, "Epochs to converge": [9000]}, {"unit": "tokens"}, "does not tell the tokens of a sample"),
    ],
)  # fmt: skip
def test_unit_that_cannot_be_is_refused_with_the_right_reason(
    tmp_path: Path, points: dict[str, object], options: dict[str, object], message: str
) -> None:
    file = tmp_path / "rcps_x.json"
    file.write_text(json.dumps({"a": points}))
    with pytest.raises(ConfigError, match=message):
        convergence_points.read(file, **options)  # type: ignore[arg-type]


def test_steps_and_spacing_of_evaluations_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rcps_x.json"
    file.write_text(json.dumps({"a": {"Benchmark": "sd", "BS": 512, "Epochs to converge": [5000, 6000, 5500]}}))
    found = convergence_points.read(file)
    assert found.samples == [2_560_000, 3_072_000, 2_816_000]
    assert found.width == [256_000] * 3
    assert convergence_points.read(file, unit="steps") == found
