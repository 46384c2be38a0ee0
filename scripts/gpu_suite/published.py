"""Published rates of one GPU, from the tables that the planner is calibrated with (scripts/calibrate_planner.py)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NVIDIA, MLPERF = ROOT / "tests/experiments/planner/nvidia_rows.csv", ROOT / "trainer/mlperf/submissions.csv"


@dataclass(frozen=True)
class Published:
    """A rate of one GPU out of a machine's."""

    gpu: str
    samples_per_second: float
    source: str


def nvidia(model: str, length: int | None) -> list[Published]:
    """NVIDIA's PyTorch examples on one GPU, in mixed precision.

    >>> [(found.gpu, found.samples_per_second) for found in nvidia("bert", 128)]
    [('a100', 580.0), ('v100', 224.0)]
    """
    return [
        Published(row["gpu"], float(row["samples_per_s"]), f"NVIDIA DeepLearningExamples, {row['source']}")
        for row in _rows(NVIDIA)
        if row["model"] == model and row["gpus"] == "1" and row["length"] == ("" if length is None else str(length))
    ]


def mlperf(model: str, gpus: tuple[str, ...] = ("h200", "h100", "a100")) -> list[Published]:
    """The fastest result of one machine of each GPU in MLPerf. BERT has 512 tokens at most, about 244 in the mean; ResNet is MXNet's.

    >>> [(found.gpu, round(found.samples_per_second)) for found in mlperf("bert", ("h200",))]
    [('h200', 999)]
    """
    found = []
    for gpu in gpus:
        machines = [row for row in _rows(MLPERF) if (row["benchmark"], row["gpu"], row["nodes"]) == (model, gpu, "1")]
        rates = [Published(gpu, _rate(row) / int(row["per_node"]), f"MLPerf {row['source']}") for row in machines]
        found += [max(rates, key=lambda one: one.samples_per_second)] if rates else []
    return found


def _rate(row: dict[str, str]) -> float:
    """Samples per second of a whole machine; without a logged throughput, of the run with its evaluations."""
    return float(row["samples_per_s"] or int(row["samples"]) / (60 * float(row["minutes"])))


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
