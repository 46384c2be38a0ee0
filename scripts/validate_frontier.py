"""Compares times to a target that `bellwether frontier` computes with MLPerf's: the table of docs/results/frontier.md.

    python -m scripts.validate_frontier docs/results/frontier.md

Every row of BERT and ResNet is predicted from the throughput of another one: of a single node with the same GPU, of the same submitter where
there is one. The curve of the samples is fitted to MLPerf's reference convergence points (tests/experiments/planner/rcp_summaries.csv:
number, geometric mean and deviation of the runs at each batch size). Takes seconds.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from bellwether.experiments.analysis import critical_batch
from bellwether.experiments.analysis.critical_batch import Fit
from bellwether.experiments.planner import frontier
from bellwether.experiments.planner.compute_time import ComputeTime
from scripts import results_page
from scripts.calibrate_planner import ROWS, SUBMISSIONS, links, profile

BEGIN, END = "<!-- written by scripts/validate_frontier.py -->", "<!-- end -->"


@dataclass(frozen=True)
class Run:
    """A row of MLPerf: means over its runs."""

    benchmark: str
    gpu: str
    nodes: int
    per_node: int
    network: float | None  # Gbit/s per GPU between nodes; None: as in the data sheet
    batch: int
    minutes: float
    step: float  # seconds
    source: str

    @property
    def gpus(self) -> int:
        return self.nodes * self.per_node

    @property
    def submitter(self) -> str:
        return self.source.split("/")[1]


@dataclass(frozen=True)
class Prediction:
    run: Run
    minutes: frontier.Span

    @property
    def ratio(self) -> float:
        return self.minutes.middle / self.run.minutes

    @property
    def covered(self) -> bool:
        return self.minutes.low <= self.run.minutes <= self.minutes.high


def curve(benchmark: str, folder: Path = ROWS) -> Fit:
    """The fit to runs with the mean and deviation of the reference's at each batch size."""
    batches: list[float] = []
    samples: list[float] = []
    width: list[float] = []
    for row in _read(folder / "rcp_summaries.csv"):
        if row["benchmark"] == benchmark:
            n = int(row["runs"])
            quantiles = np.array([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)])
            values = float(row["samples"]) * np.exp(float(row["log_deviation"]) * quantiles / quantiles.std(ddof=1))
            batches += [float(row["batch"])] * n
            samples += values.tolist()
            width += [float(row["evaluated_every"])] * n
    return critical_batch.fit(batches, samples, None, width)


def runs(folder: Path = ROWS) -> list[Run]:
    """The rows of MLPerf."""
    found = []
    for row in _read(SUBMISSIONS):
        nodes, per_node, batch, minutes = (
            int(row["nodes"]),
            int(row["per_node"]),
            int(row["batch"]),
            float(row["minutes"]),
        )
        network = float(row["network"]) if row["network"] else None
        speed = float(row["samples_per_s"] or int(row["samples"]) / (60 * minutes))
        found.append(
            Run(row["benchmark"], row["gpu"], nodes, per_node, network, batch, minutes, batch / speed, row["source"])
        )
    return found


def reference(found: Sequence[Run], run: Run) -> Run:
    """The row of one node that stands for a user's measurement: of the same submitter, else of NVIDIA, or of any; with the most GPUs."""
    single = [each for each in found if each.nodes == 1 and each is not run]
    return max(
        single, key=lambda each: (each.submitter == run.submitter, each.submitter == "NVIDIA", each.gpus, each.source)
    )


def predictions() -> Iterator[Prediction]:
    """All rows but the references."""
    everything = runs()
    for benchmark in ("bert", "resnet"):
        fit = curve(benchmark)
        assert fit.used is not None
        measured_batches = fit.used.batch
        for gpu in dict.fromkeys(run.gpu for run in everything if run.benchmark == benchmark):
            own = [run for run in everything if (run.benchmark, run.gpu) == (benchmark, gpu)]
            for run in own:
                if (
                    any(each.nodes == 1 and each is not run for each in own)
                    and measured_batches.min() <= run.batch <= measured_batches.max()
                ):
                    yield Prediction(run, predict(fit, reference(own, run), run))


def predict(fit: Fit, first: Run, run: Run) -> frontier.Span:
    """Minutes to the target of a row, given the throughput of another."""
    found = profile(run.benchmark, 512 if run.benchmark == "bert" else None)

    def network(n: Run) -> float:
        return links(n.gpu, n.nodes, n.per_node, n.network).seconds("all-reduce", 2.0 * found.elements, n.gpus)

    micro = first.batch // first.gpus
    time = ComputeTime.measured(first.step - network(first), micro, found)
    seconds = time.seconds(run.batch / run.gpus) + network(run)
    (option,) = frontier.options(fit, lambda n, batch: seconds, [run.gpus], [run.batch], None)
    return option.hours.times(60)


def _read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def main() -> int:
    found = list(predictions())
    lines = [
        f"| {p.run.benchmark} | {p.run.gpu} | {p.run.nodes} x {p.run.per_node} | {p.run.batch:,} | {p.run.minutes:.3g} | {p.minutes.middle:.3g} | "
        f"{p.minutes.low:.3g} to {p.minutes.high:.3g}{'' if p.covered else ' *'} | {p.ratio:.2f} | {p.run.source} |"
        for p in found
    ]
    small = [p for p in found if p.run.gpus < 100]
    large = [p for p in found if p.run.gpus >= 100]
    summary = (
        f"{results_page.measured()}: `python -m scripts.validate_frontier docs/results/frontier.md`. {len(found)} rows. Of {len(small)} below "
        f"100 GPUs {np.mean([abs(np.log(p.ratio)) < np.log(1.15) for p in small]):.0%} are within 15 %, of {len(large)} from 100 GPUs on "
        f"{np.mean([abs(np.log(p.ratio)) < np.log(1.3) for p in large]):.0%} within 30 %. The 90 % intervals cover "
        f"{np.mean([p.covered for p in found]):.0%} of all rows."
    )
    text = "\n".join([
        summary, "", "| model | GPU | nodes | batch | minutes, measured | computed | 90 % interval | ratio | source |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |", *lines,
    ])  # fmt: skip
    results_page.write(sys.argv[1] if len(sys.argv) > 1 else None, BEGIN, END, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
