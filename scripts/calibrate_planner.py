"""Compares the step times that `bellwether plan` computes with published ones: the second table of docs/results/planner.md.

    python -m scripts.calibrate_planner docs/results/planner.md

Measurements: trainer/mlperf/submissions.csv, from the logs of mlcommons/training_results_v2.1, v3.0, v3.1 and v4.0 (batch size,
mean of samples and minutes over the runs, logged throughput), and nvidia_rows.csv, from the tables of NVIDIA DeepLearningExamples. The
constants are fitted here by least squares of logarithms; the planner's are these, rounded. Takes seconds.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from bellwether.experiments.planner import compute_time, gpus
from bellwether.experiments.planner.compute_time import ComputeTime
from bellwether.experiments.planner.model_info import model_info
from bellwether.experiments.planner.network import Network
from bellwether.experiments.planner.step_time import Machines
from bellwether.trainer.config import validate
from bellwether.trainer.memory import activations
from bellwether.trainer.memory.activations import Profile
from scripts import results_page

BEGIN, END = "<!-- written by scripts/calibrate_planner.py -->", "<!-- end of calibration -->"
ROWS = Path("tests/experiments/planner")
SUBMISSIONS = Path("trainer/mlperf/submissions.csv")


@dataclass(frozen=True)
class Constants:
    """What is fitted. Those of bf16 and torch are the planner's."""

    bert: float  # share of the peak that BERT's matrix products reach
    resnet: float  # the same for ResNet, in MLPerf's submissions
    traffic: float  # bytes read and written for each byte saved
    fixed: float  # seconds for each parameter tensor of a micro-batch
    mlperf_length: float  # mean length of MLPerf's BERT samples, as a share of 512 tokens
    fp8: float  # how much faster MLPerf's BERT is on H100 and H200, where it computes in FP8
    torch_resnet: float  # how much slower ResNet is in NVIDIA's PyTorch example


@dataclass(frozen=True)
class Row:
    """A measured step."""

    model: str
    length: int | None
    gpu: str
    nodes: int
    per_node: int
    network: float | None  # Gbit/s per GPU between nodes, as its description tells; None: as in the data sheet
    micro: float
    seconds: float
    source: str
    torch: bool

    @property
    def gpus(self) -> int:
        return self.nodes * self.per_node


def rows(folder: Path = ROWS) -> list[Row]:
    """All measurements."""
    found = []
    for raw in _read(SUBMISSIONS):
        nodes, per_node, batch = int(raw["nodes"]), int(raw["per_node"]), int(raw["batch"])
        # Without a logged throughput the time to the target is taken, which includes the evaluations.
        speed = float(raw["samples_per_s"] or int(raw["samples"]) / (60 * float(raw["minutes"])))
        length = 512 if raw["benchmark"] == "bert" else None
        micro = batch / (nodes * per_node)
        found.append(
            Row(
                raw["benchmark"],
                length,
                raw["gpu"],
                nodes,
                per_node,
                float(raw["network"]) if raw["network"] else None,
                micro,
                batch / speed,
                raw["source"],
                False,
            )
        )
    for raw in _read(folder / "nvidia_rows.csv"):
        n, micro = int(raw["gpus"]), int(raw["micro"])
        seconds = micro * n / float(raw["samples_per_s"])
        length = int(raw["length"]) if raw["length"] else None
        found.append(Row(raw["model"], length, raw["gpu"], 1, n, None, micro, seconds, raw["source"], True))
    return found


def is_fitted(row: Row) -> bool:
    """Not BERT on L40S, which is slower than anything here explains."""
    return not (row.model == "bert" and row.gpu == "l40s")


def links(gpu: str, nodes: int, per_node: int, network: float | None) -> Network:
    """The network of a measurement's machines."""
    data_sheet = gpus.GPUS[gpu]
    return Machines(replace(data_sheet, network=network or data_sheet.network), nodes, per_node).network


def _read(path: Path) -> list[Mapping[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@cache
def profile(model: str, length: int | None) -> Profile:
    """Of BERT-large or ResNet-50 in 16 bit."""
    raw: dict[str, Any] = {
        "name": "x", "duration": "1 steps", "batch": {"global": 8, "micro": 8}, "optimizer": {"name": "lamb", "lr": 1e-3},
        "engine": {"precision": "bf16"},
    }  # fmt: skip
    if model == "bert":
        text = {"kind": "text", "source": "texts/*.txt", "vocabulary_size": 30522, "sequence_length": length}
        raw |= {"model": {"kind": "bert", "size": "large"}, "data": text}
    else:
        raw |= {"model": {"kind": "resnet", "depth": 50}, "data": {"kind": "images", "source": "images", "size": 224}}
    config = validate(raw)
    return activations.measure(config, model_info(config, 1000).data)


def predict(row: Row, c: Constants) -> float:
    """Seconds of a step: computation, and an all-reduce of the gradients in 16 bit that is not hidden."""
    found = profile(row.model, row.length)
    efficiency = c.bert if row.model == "bert" else c.resnet
    if row.model == "bert" and not row.torch:
        found = replace(
            found, flops=c.mlperf_length * found.flops, saved_per_sample=c.mlperf_length * found.saved_per_sample
        )
        efficiency *= c.fp8 if row.gpu.startswith(("h100", "h200")) else 1.0
    time = ComputeTime.estimate(found, gpus.GPUS[row.gpu], "fp16", efficiency, c.traffic)
    fixed = c.fixed * compute_time.tensors(found)
    slower = c.torch_resnet if row.torch and row.model == "resnet" else 1.0
    network = links(row.gpu, row.nodes, row.per_node, row.network)
    return fixed + slower * row.micro * time.per_sample + network.seconds("all-reduce", 2.0 * found.elements, row.gpus)


def errors(c: Constants, measured: Sequence[Row]) -> np.ndarray:
    """Logarithms of predicted over measured."""
    return np.log([predict(row, c) / row.seconds for row in measured])


def fit(measured: Sequence[Row]) -> Constants:
    """Fit the constants to the rows of `is_fitted`."""
    fitted = [row for row in measured if is_fitted(row)]
    weight = np.array([3.0 if row.torch else 1.0 for row in fitted])  # few
    start = [0.5, 0.5, 5.0, 20e-6, 0.45, 1.3, 1.3]
    low, high = [0.2, 0.1, 1.0, 5e-6, 0.2, 1.0, 1.0], [0.9, 0.9, 12.0, 60e-6, 1.0, 2.0, 2.0]
    found = least_squares(
        lambda p: weight * errors(Constants(*p), fitted),
        start,
        bounds=(low, high),
        x_scale=start,
        loss="soft_l1",
        f_scale=0.1,
    )
    return Constants(*map(float, found.x))


def main() -> int:
    measured = rows()
    c = fit(measured)
    error = errors(c, measured)
    size = np.array([row.gpus for row in measured])
    fitted = np.array([is_fitted(row) for row in measured])
    lines = [
        f"| {row.model}{f' {row.length}' if row.length else ''}{', PyTorch' if row.torch else ''} | {row.gpu} | {row.nodes} x {row.per_node} | "
        f"{row.micro:g} | {1e3 * row.seconds:,.1f} | {1e3 * row.seconds * np.exp(e):,.1f} | {np.exp(e):.2f}{'' if used else ' *'} | {row.source} |"
        for row, e, used in zip(measured, error, fitted, strict=True)
    ]
    small, large = np.abs(error[fitted & (size < 100)]), np.abs(error[fitted & (size >= 100)])
    text = "\n".join([
        f"{results_page.measured()}: `python -m scripts.calibrate_planner docs/results/planner.md`. {len(measured)} rows; of the "
        f"{len(small)} fitted ones below 100 GPUs {np.mean(small < np.log(1.15)):.0%} are within 15 %, of the {len(large)} others "
        f"{np.mean(large < np.log(1.3)):.0%} within 30 %.", "",
        f"Fitted: matrix products at {c.bert:.0%} of the peak for BERT and {c.resnet:.0%} for ResNet; {c.traffic:.1f} bytes of traffic for each "
        f"byte saved; {1e6 * c.fixed:.0f} us for each parameter tensor; a mean length of {512 * c.mlperf_length:.0f} tokens in MLPerf's BERT; FP8 "
        f"{c.fp8:.2f} times as fast as bf16; PyTorch's ResNet {c.torch_resnet:.2f} times as slow as MLPerf's, which is {c.resnet / c.torch_resnet:.0%} "
        f"of the peak and {c.traffic * c.torch_resnet:.1f} bytes.", "",
        "| model | GPU | nodes | micro-batch | measured, ms a step | computed | ratio | source |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |", *lines,
    ])  # fmt: skip
    results_page.write(sys.argv[1] if len(sys.argv) > 1 else None, BEGIN, END, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
