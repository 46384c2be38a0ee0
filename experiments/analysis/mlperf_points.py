"""Reads MLPerf's reference convergence points, ``rcps_*.json`` of mlcommons/logging, mlperf_logging/rcp_checker.

A point has ``BS`` and a list of runs, ``Epochs to converge`` or ``samples to converge``. What the list counts depends on the benchmark and
its version, whatever the key says.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

from bellwether.experiments.analysis.points import Points, spacing
from bellwether.experiments.analysis.values import batch_size, positive, refuse
from bellwether.trainer.config import ConfigError

Unit = Literal["samples", "epochs", "steps", "tokens"]

_KEYS = {"Epochs to converge": None, "samples to converge": "samples"}
_MAX_EPOCHS = 100_000  # larger numbers are samples


@dataclass(frozen=True)
class _Counts:
    """What a benchmark counts."""

    unit: Unit
    size: int | None = None  # samples of an epoch, or tokens of a sample; None: to be given
    large: Unit | None = None  # what it counts where all numbers are above 100,000, in later versions


# Sizes: train_samples of the compliance checker (deepcam, unet3d) and of NVIDIA's logs in training_results_v3.0 (resnet, dlrm_dcnv2). GPT-3
# counts tokens: its batch of 1,536 sequences has 2,048 tokens each, and all numbers are multiples of both.
_BENCHMARKS = {
    **dict.fromkeys(("bert", "openfold", "llama2_70b_lora", "flux1", "llama31_405b", "llama31_8b", "stable_diffusion", "gpt_oss_20b",
                     "deepseekv3_671b", "qwen35_397b_grpo"), _Counts("samples")),
    **dict.fromkeys(("cosmoflow", "oc20", "dlrm", "maskrcnn", "rnnt", "ssd", "retinanet", "gnn", "rgat"), _Counts("epochs")),
    "resnet": _Counts("epochs", 1_281_167),
    "deepcam": _Counts("epochs", 121_266),
    "dlrm_dcnv2": _Counts("epochs", 4_195_197_692),
    "unet3d": _Counts("epochs", 168, large="samples"),
    "sd": _Counts("steps"),
    "gpt3": _Counts("tokens", 2048),
}  # fmt: skip


def read(raw: Any, path: str, unit: Unit | None, dataset_size: int | None) -> Points:
    """Read the points.

    Args:
        unit: of the numbers; None: the benchmark's, or else inferred.
        dataset_size: samples per epoch; None: the benchmark's.

    Raises:
        ConfigError: if it is not such a file, or it is unknown what it counts.
    """
    points = raw if isinstance(raw, dict) else {}
    keys = {key for key in _KEYS for p in points.values() if isinstance(p, dict) and isinstance(p.get(key), list)}
    if len(keys) != 1 or not all(
        isinstance(p, dict) and "BS" in p and isinstance(p.get(*keys), list) for p in points.values()
    ):
        names = " or ".join(map(repr, _KEYS))
        raise ConfigError("FILE", path, f"is not an MLPerf file: each point must have BS and {names}")
    (key,) = keys
    counts: dict[float, list[float]] = defaultdict(list)
    for name, point in points.items():
        batch = batch_size(point["BS"], f"{name}: BS", path)
        counts[batch].extend(positive(count, f"{name}: {key!r}", path) for count in point[key])
    if not any(counts.values()):
        raise ConfigError("FILE", path, "has no runs")
    benchmarks = {str(point.get("Benchmark", "")) for point in points.values()}
    benchmark = benchmarks.pop() if len(benchmarks) == 1 else ""
    unit = unit or _unit(key, benchmark, counts, path)
    _check_unit(unit, counts, key, path)
    scale = _scale(unit, benchmark, path, dataset_size)
    return _points(counts, unit, scale, benchmark)


def _unit(key: str, benchmark: str, counts: dict[float, list[float]], path: str) -> Unit:
    least = min(min(values) for values in counts.values() if values)
    known = _BENCHMARKS.get(benchmark)
    if _KEYS[key] is not None:
        return "samples"
    if known is not None:
        return known.large if known.large is not None and least > _MAX_EPOCHS else known.unit
    if least < 1000:
        return "epochs"
    if any(min(values) < batch for batch, values in counts.items() if values):
        problem = f"{key!r} goes down to {least:,.10g}, which is less than a batch of samples, and many for epochs"
        raise ConfigError(
            "--unit", None, f"{path}: {problem}", "write --unit steps, or --unit epochs and --dataset-size N"
        )
    return "samples"


def _check_unit(unit: Unit, counts: dict[float, list[float]], key: str, path: str) -> None:
    """No run takes 100,000 epochs, or less than one batch of samples."""
    least = min(min(values) for values in counts.values() if values)
    if unit == "epochs" and least >= _MAX_EPOCHS:
        other, advice = "samples", "write --unit samples without --dataset-size"
    elif unit == "samples" and any(min(values) < batch for batch, values in counts.items() if values):
        other, advice = "epochs or steps", "write --unit epochs and --dataset-size N, or --unit steps"
    else:
        return
    raise ConfigError("--unit", unit, f"{key!r} goes down to {least:,.10g}: those are {other}", advice)


def _scale(unit: Unit, benchmark: str, path: str, dataset_size: int | None) -> float:
    known = _BENCHMARKS.get(benchmark)
    if unit == "epochs":
        size = dataset_size or (known.size if known is not None and known.unit == "epochs" else None)
        if size is None:
            raise ConfigError(
                "--dataset-size", None, f"{path} counts epochs", "write --dataset-size N, in samples per epoch"
            )
        return float(size)
    refuse(f"{path} counts {unit}", dataset_size=dataset_size)
    if unit == "tokens":
        if known is None or known.unit != "tokens" or known.size is None:
            raise ConfigError(
                "--unit",
                unit,
                f"{path} does not tell the tokens of a sample",
                "divide by them, and write --unit samples",
            )
        return 1 / known.size
    return 1.0


def _points(counts: dict[float, list[float]], unit: Unit, scale: float, benchmark: str) -> Points:
    batches: list[float] = []
    samples: list[float] = []
    width: list[float] = []
    whole_epochs = unit == "epochs" and all(value.is_integer() for values in counts.values() for value in values)
    for batch, values in counts.items():
        factor = scale * (batch if unit == "steps" else 1)
        batches += [batch] * len(values)
        samples += [value * factor for value in values]
        width += [(1.0 if whole_epochs else spacing(values)) * factor] * len(values)
    return Points(batches, samples, [True] * len(batches), width, workload=f"MLPerf {benchmark}" if benchmark else "")
