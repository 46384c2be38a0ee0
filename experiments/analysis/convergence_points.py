"""Reads how many samples runs needed to reach a target, by batch size, from our files and those of others.

========================= ================================================================================================
``rcps_*.json``           MLPerf's reference convergence points: ``BS`` and ``Epochs to converge``, a list of runs, which holds
                          epochs for some benchmarks and samples for others
``*.csv``, ``*.parquet``  one row per run: ``batch_size``, and one of ``samples``, ``steps`` and ``epochs`` to the target. An
                          optional column ``reached`` is yes or no in every row (or true and false, y and n, 1 and 0); rows
                          with no are counted and excluded, and an empty value is an error
                          or a sweep's measurements (`bellwether.experiments.sweep.measurements`): the seeds of the best
                          setting at each batch size
========================= ================================================================================================
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bellwether.experiments.analysis import aggregate, io
from bellwether.experiments.sweep import measurements
from bellwether.trainer.config import ConfigError

Unit = Literal["samples", "epochs"]
_MAX_EPOCHS = 100_000  # larger numbers are samples
_REACHED = {"true": True, "yes": True, "y": True, "1": True, "false": False, "no": False, "n": False, "0": False}
_APPLIES_TO = {
    "unit": "MLPerf files", "dataset_size": "files that count epochs",
    "target": "a sweep's measurements", "optimizer": "a sweep's measurements",
}  # fmt: skip


@dataclass(frozen=True)
class Points:
    """Runs that reached their target."""

    batches: list[float]  #: batch size of each run
    samples: list[float]  #: to the target
    missed: int = 0  #: number of runs that did not reach it


def read(
    path: str | Path,
    unit: Unit | None = None,
    dataset_size: int | None = None,
    target: str | None = None,
    optimizer: str | None = None,
) -> Points:
    """Read the runs in a file.

    Args:
        unit: of MLPerf's "Epochs to converge"; None: samples if no number is below 1,000, else epochs.
        dataset_size: samples per epoch, required if the file counts epochs.
        target: of a sweep's measurements; None: the one in the ``sweep.yaml`` next to them.
        optimizer: of a sweep's measurements, required if they hold several.

    Raises:
        ConfigError: naming the file and what is wrong with it, or an option that does not apply to the file.
    """
    file = Path(path)
    try:
        if file.suffix.lower() == ".json":
            points = _mlperf(json.loads(file.read_text()), str(path), unit, dataset_size)
            _refuse(f"{path} is an MLPerf file", target=target, optimizer=optimizer)
        elif file.is_dir() or measurements.is_table(names := _columns(file)):
            points = _sweep(file, target, optimizer)
            _refuse(f"{path} holds a sweep's measurements", unit=unit, dataset_size=dataset_size)
        else:
            _check_columns(names, str(path))
            points = _table(_rows(file), str(path), dataset_size)
            _refuse(f"{path} has one row per run", unit=unit, target=target, optimizer=optimizer)
        return points
    except OSError as error:
        raise ConfigError("FILE", str(path), f"cannot be read: {error.strerror or error}") from None
    except (ValueError, UnicodeDecodeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("FILE", str(path), f"cannot be read: {' '.join(str(error).split())}") from None


def _columns(file: Path) -> Sequence[str]:
    if file.suffix.lower() == ".csv":
        with open(file, newline="", encoding="utf-8-sig") as stream:
            return csv.DictReader(stream, skipinitialspace=True).fieldnames or []
    if file.suffix.lower() == ".parquet":
        import pyarrow.parquet

        return list(pyarrow.parquet.read_schema(file).names)
    advice = "give an rcps_*.json, a .csv, a .parquet, or a sweep's directory"
    raise ConfigError("FILE", str(file), "has an unknown suffix", advice)


def _rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix.lower() == ".csv":
        with open(file, newline="", encoding="utf-8-sig") as stream:
            return list(csv.DictReader(stream, skipinitialspace=True))
    import pyarrow.parquet

    return list(pyarrow.parquet.read_table(file).to_pylist())


def _refuse(file: str, **options: object) -> None:
    """Refuse options that do not apply to a file."""
    for name, value in options.items():
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(option, value, f"applies to {_APPLIES_TO[name]}, and {file}", "remove it")


def _sweep(file: Path, target: str | None, optimizer: str | None) -> Points:
    """The seeds of the best setting at each batch size."""
    trials = io.read(file)
    if not trials:
        raise ConfigError("FILE", str(file), "has no runs")
    settings = io.settings(file if file.is_dir() else file.parent)
    goal = io.target(target, settings)
    if goal is None:
        advice = "write --target 'val/loss <= 2.5' or 'val/accuracy >= 0.9'"
        raise ConfigError(io.TARGET, None, f"{file} holds a sweep's measurements without a target", advice)
    if target is not None:
        io.check_measured(goal, trials)
    cells = aggregate.choose(aggregate.group_trials(trials, goal, io.early_stop(settings)), optimizer, str(file))
    runs = aggregate.reached_runs(cells)
    missed = sum(len(cell.best.valid_runs) for cell in cells) - len(runs)
    if not runs:
        raise ConfigError("FILE", str(file), f"has no batch size at which the best setting reaches {goal}")
    return Points([run.trial.batch_size for run in runs], [run.samples for run in runs], missed)


def _mlperf(raw: Any, path: str, unit: Unit | None, dataset_size: int | None) -> Points:
    key = "Epochs to converge"
    points = raw if isinstance(raw, dict) else {}
    if not points or not all(
        isinstance(p, dict) and isinstance(p.get(key), list) and "BS" in p for p in points.values()
    ):
        raise ConfigError("FILE", path, f"is not an MLPerf file: each point must have BS and {key!r}")
    runs = [
        (_batch(point["BS"], f"{name}: BS", path), _number(count, f"{name}: {key!r}", path))
        for name, point in points.items()
        for count in point[key]
    ]
    if not runs:
        raise ConfigError("FILE", path, "has no runs")
    least = min(count for _, count in runs)
    unit_: Unit = unit or ("epochs" if least < 1000 else "samples")
    # No run takes that many epochs, or less than one batch.
    if least >= _MAX_EPOCHS if unit_ == "epochs" else any(count < batch for batch, count in runs):
        other = "samples" if unit_ == "epochs" else "epochs"
        advice = f"write --unit {other} {'and --dataset-size N' if other == 'epochs' else 'without --dataset-size'}"
        raise ConfigError("--unit", unit, f"{key!r} goes down to {least:,.10g}: those are {other}", advice)
    if unit_ == "samples":
        _refuse(f"{path} counts samples", dataset_size=dataset_size)
    scale = _epoch(path, dataset_size) if unit_ == "epochs" else 1
    return Points([batch for batch, _ in runs], [count * scale for _, count in runs])


def _check_columns(names: Sequence[str], path: str) -> None:
    if "trial" in names:
        lacking = " and ".join(name for name in ("batch_size", "step") if name not in names)
        problem = f"has a column trial, like a sweep's measurements, but no column {lacking}"
        advice = f"add {lacking}, as in docs/sweeps.md; or remove trial if each row is a run"
        raise ConfigError("FILE", path, problem, advice)
    if "batch_size" not in names or not {"samples", "steps", "epochs"} & set(names):
        problem = f"its columns are {', '.join(names) or 'none'}"
        advice = "write batch_size and one of samples, steps and epochs, separated by commas"
        raise ConfigError("FILE", path, problem, advice)


def _table(rows: Iterable[Mapping[str, Any]], path: str, dataset_size: int | None) -> Points:
    batches: list[float] = []
    samples: list[float] = []
    missed = 0
    units = set()
    for number, row in enumerate(rows, 2):
        if "reached" in row and not _parse_reached(row["reached"], f"line {number}", path):
            missed += 1
            continue
        unit = next((name for name in ("samples", "steps", "epochs") if row.get(name) not in (None, "")), None)
        if unit is None or row.get("batch_size") in (None, ""):
            advice = "name the columns batch_size, and samples, steps or epochs"
            raise ConfigError("FILE", path, f"line {number} has no batch size, or no samples, steps or epochs", advice)
        batch = _batch(row["batch_size"], f"line {number}: batch_size", path)
        count = _number(row[unit], f"line {number}: {unit}", path)
        scale = {"samples": 1.0, "steps": batch}.get(unit) or _epoch(path, dataset_size)
        batches.append(batch)
        samples.append(count * scale)
        units.add(unit)
    if not batches:
        none = f"has no run that reached its target, and {missed:,} that missed it" if missed else "has no runs"
        raise ConfigError("FILE", path, none)
    if "epochs" not in units:
        _refuse(f"{path} counts {' and '.join(sorted(units))}", dataset_size=dataset_size)
    return Points(batches, samples, missed)


def _parse_reached(value: Any, where: str, path: str) -> bool:
    text = "" if value is None else str(value).strip().lower()
    if text not in _REACHED:
        problem = f"{where}: reached: {value!r} is neither true nor false" if text else f"{where}: reached is empty"
        raise ConfigError("FILE", path, problem, "write true or false")
    return _REACHED[text]


def _batch(value: Any, what: str, path: str) -> float:
    batch = _number(value, what, path)
    if not batch.is_integer():
        raise ConfigError("FILE", path, f"{what}: {value!r} is not a whole number")
    return batch


def _number(value: Any, what: str, path: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigError("FILE", path, f"{what}: {value!r} is not a number above 0")
    return number


def _epoch(path: str, dataset_size: int | None) -> int:
    if dataset_size is None:
        raise ConfigError(
            "--dataset-size", None, f"{path} counts epochs", "write --dataset-size N, in samples per epoch"
        )
    return dataset_size
