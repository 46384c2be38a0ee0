"""The benchmarks of MLPerf training by which a run can be measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: as in ``submission_benchmark``.
        target: held-out accuracy at which a run ends.
        rules: the newest version of the rules that has this benchmark.
        unit: what ``epoch_num`` counts in its logs and ``Epochs to converge`` in its reference points.
        dataset: training samples of its data; None where its logs count samples.
    """

    name: str
    target: float
    rules: str
    unit: str
    dataset: int | None


#: From mlcommons/logging, compliance_checker/training_*/closed_{bert,resnet}.yaml.
BENCHMARKS = {
    "bert": Benchmark("bert", 0.72, "5.0.0", "samples", None),
    "resnet": Benchmark("resnet", 0.759, "4.0.0", "epochs", 1_281_167),
}
