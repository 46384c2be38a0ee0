"""Where a run stands among MLPerf's reference convergence points and submissions of its batch size."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bellwether.trainer.mlperf.benchmarks import BENCHMARKS, Benchmark
from bellwether.trainer.mlperf.result_log import TOKEN

_SUBMISSIONS = Path(__file__).with_name("submissions.csv")


@dataclass(frozen=True)
class Result:
    """What a log in MLPerf's format says about one run.

    Attributes:
        batch: samples.
        count: samples or epochs, as the benchmark counts, to the target; None if it was not reached.
        newest: the same to the last evaluation, or 0.
        accuracy: of the last evaluation; None before the first.
    """

    benchmark: Benchmark
    batch: int
    count: float | None
    newest: float
    accuracy: float | None


@dataclass(frozen=True)
class Submission:
    """A published submission: its batch size, and the mean count to the target of its runs."""

    batch: int
    count: float
    source: str


@dataclass(frozen=True)
class Reference:
    """A reference convergence point.

    Attributes:
        batch: samples.
        counts: of each run.
        mean: without the best and the worst, as MLPerf scores.
        least: the least mean of a submission that MLPerf accepts.
    """

    batch: int
    counts: tuple[float, ...]
    mean: float
    least: float


@dataclass(frozen=True)
class Placement:
    """A run beside others of its benchmark.

    Attributes:
        reference: the point of its batch size, if there is one.
        nearest: batch sizes of the nearest points, below and above, if there is none.
        submissions: those of its batch size.
        missing: what is not known, and how to get it; empty if nothing.
    """

    result: Result
    reference: Reference | None
    nearest: tuple[int, ...]
    submissions: tuple[Submission, ...]
    missing: str = ""

    def __str__(self) -> str:
        """One sentence."""
        run = self.result
        unit, target = run.benchmark.unit, run.benchmark.target
        if run.count is None:
            accuracy = (
                "no evaluation yet" if run.accuracy is None else f"{run.accuracy:.4f} after {run.newest:,.10g} {unit}"
            )
            own = f"{target:g} is not reached: {accuracy}"
        else:
            own = f"{target:g} after {run.count:,.10g} {unit}"
        if self.reference is None:
            known = f"; the nearest are {' and '.join(f'{batch:,}' for batch in self.nearest)}" if self.nearest else ""
            beside = self.missing or f"no reference point at batch {run.batch:,}{known}"
        else:
            r = self.reference
            beside = f"reference {r.mean:,.0f} ({min(r.counts):,.10g} to {max(r.counts):,.10g} in {len(r.counts)} runs)"
            if run.count is not None:
                beside += f", {run.count / r.mean:.2f} of it" + (
                    ", less than MLPerf accepts" if run.count < r.least else ""
                )
        if self.submissions:
            counts = [each.count for each in self.submissions]
            beside += f"; {len(counts)} submissions, {min(counts):,.10g} to {max(counts):,.10g}"
        return f"{own}; {beside}"


def read(log: Path) -> Result | None:
    """Read a log in MLPerf's format, ours or another's; None if it names no benchmark that we know, or no batch size.

    The run counts as converged if its ``run_stop`` says so, at its last evaluation before that.
    """
    benchmark, batch, accuracy, newest, success = None, 0, None, 0.0, False
    for entry in _entries(log):
        key, value, metadata = entry["key"], entry["value"], entry["metadata"]
        if key == "submission_benchmark":
            benchmark = BENCHMARKS.get(value)
        elif key == "global_batch_size":
            batch = int(value)
        elif key == "eval_accuracy":
            accuracy, newest = value, float(metadata.get("epoch_num", 0.0))
        elif key == "run_stop":
            success = metadata.get("status") == "success"
    if benchmark is None or batch <= 0:
        return None
    return Result(benchmark, batch, newest if success else None, newest, accuracy)


def place(result: Result) -> Placement:
    """Find the reference points and the submissions of a run's benchmark and batch size."""
    submissions = tuple(each for each in _submissions(result.benchmark) if each.batch == result.batch)
    if find_spec("mlperf_logging") is None:
        missing = "the reference points are in the package mlperf-logging (pip install mlperf-logging)"
        return Placement(result, None, (), submissions, missing)
    points = {point.batch: point for point in references(result.benchmark)}
    below = [batch for batch in points if batch < result.batch][-1:]
    above = [batch for batch in points if batch > result.batch][:1]
    return Placement(result, points.get(result.batch), tuple(below + above), submissions)


def references(benchmark: Benchmark) -> list[Reference]:
    """The reference convergence points of the newest rules that have this benchmark, by batch size. Needs mlperf-logging."""
    from mlperf_logging.rcp_checker.rcp_checker import RCP_Checker

    records = RCP_Checker("training", benchmark.rules, benchmark.name, False).rcp_data.values()
    found = [
        Reference(
            int(record["BS"]), tuple(map(float, record["Epochs to converge"])), float(record["RCP Mean"]),
            float(record["Min Epochs"]),
        )
        for record in records
    ]  # fmt: skip
    return sorted(found, key=lambda point: point.batch)


def _submissions(benchmark: Benchmark) -> Iterator[Submission]:
    """submissions.csv: facts of mlcommons/training_results_v2.1 to v4.0, the means over the runs of each submission."""
    with open(_SUBMISSIONS, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["benchmark"] == benchmark.name and row["samples"]:
                samples = float(row["samples"])
                yield Submission(int(row["batch"]), samples / (benchmark.dataset or 1), row["source"])


def _entries(log: Path) -> Iterator[dict[str, Any]]:
    for line in log.read_text(encoding="latin-1").splitlines():
        _, token, text = line.partition(TOKEN)
        if token:
            try:
                entry = json.loads(text)
            except ValueError:
                continue  # two processes have written into one line
            if isinstance(entry, dict) and {"key", "value", "metadata"} <= entry.keys():
                yield entry
