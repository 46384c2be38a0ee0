"""What it took to reach a target at each batch, read from others' files and ours.

========================= ================================================================================================
``rcps_*.json``           MLPerf's reference convergence points: ``BS`` and ``Epochs to converge``, a list of runs, which holds
                          epochs for some benchmarks and samples for others
``*.csv``, ``*.parquet``  a row a run: ``batch_size``, and one of ``samples``, ``steps`` and ``epochs`` that it took;
                          where there is a column ``reached``, rows in which it is false are counted and left out
                          a sweep's measurements (`launcher.sweep.table`): the best setting's seeds at each batch
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

from launcher.sweep import cells, directory, table
from trainer.config import ConfigError

Unit = Literal["samples", "epochs"]
_FALSE = ("false", "0", "no")


@dataclass(frozen=True)
class Points:
    """Runs that reached their target: batch, and samples it took; and how many did not."""

    batches: list[float]
    samples: list[float]
    missed: int = 0


def read(
    path: str | Path,
    unit: Unit | None = None,
    dataset_size: int | None = None,
    target: str | None = None,
    optimizer: str | None = None,
) -> Points:
    """The runs in a file.

    Args:
        unit: of MLPerf's "Epochs to converge"; None: samples where no number is below 1,000, else epochs.
        dataset_size: samples an epoch, needed where the file counts epochs.
        target: of a sweep's measurements; None: the one in the ``sweep.yaml`` beside them.
        optimizer: of a sweep's measurements, needed where they hold several.

    Raises:
        ConfigError: naming the file and what is wrong with it.
    """
    file = Path(path)
    try:
        if file.is_dir():
            return _sweep(file, target, optimizer)
        kind = file.suffix.lower()
        if kind == ".json":
            return _rcps(json.loads(file.read_text()), str(path), unit, dataset_size)
        if kind == ".csv":
            with open(file, newline="", encoding="utf-8-sig") as stream:
                rows = csv.DictReader(stream, skipinitialspace=True)
                if table.is_table(rows.fieldnames or []):
                    return _sweep(file, target, optimizer)
                _check_columns(rows.fieldnames or [], str(path))
                return _table(rows, str(path), dataset_size)
        if kind == ".parquet":
            import pyarrow.parquet

            if table.is_table(pyarrow.parquet.read_schema(file).names):
                return _sweep(file, target, optimizer)
            found = pyarrow.parquet.read_table(file)
            _check_columns(found.column_names, str(path))
            return _table(found.to_pylist(), str(path), dataset_size)
    except OSError as error:
        raise ConfigError("FILE", str(path), f"cannot be read: {error.strerror or error}") from None
    except (ValueError, UnicodeDecodeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("FILE", str(path), f"cannot be read: {' '.join(str(error).split())}") from None
    raise ConfigError(
        "FILE", str(path), "is of no kind known here", "give an rcps_*.json, a .csv, a .parquet, or a sweep's directory"
    )


def _sweep(file: Path, target: str | None, optimizer: str | None) -> Points:
    """The seeds of the best setting at each batch; those that missed are counted."""
    goal = directory.target(target, directory.settings(file if file.is_dir() else file.parent))
    if goal is None:
        advice = "write --target 'val/loss <= 2.5' or 'val/accuracy >= 0.9'"
        raise ConfigError(
            directory.TARGET, None, f"{file} holds a sweep's measurements: what were they to reach?", advice
        )
    found = cells.choose(cells.cells(directory.read(file), goal), optimizer, str(file))
    runs = cells.arrived(found)
    missed = sum(len(cell.best.counted) for cell in found) - len(runs)
    if not runs:
        raise ConfigError("FILE", str(file), f"holds no batch at which the best setting reaches {goal}")
    return Points([run.trial.batch_size for run in runs], [run.samples for run in runs], missed)


def _rcps(raw: Any, path: str, unit: Unit | None, dataset_size: int | None) -> Points:
    key = "Epochs to converge"
    points = list(raw.values()) if isinstance(raw, dict) else []
    if not points or not all(isinstance(p, dict) and isinstance(p.get(key), list) and "BS" in p for p in points):
        raise ConfigError("FILE", path, f"is no file of MLPerf's: each point there has BS and {key!r}")
    try:
        runs = [(float(point["BS"]), float(count)) for point in points for count in point[key]]
    except (TypeError, ValueError):
        raise ConfigError("FILE", path, f"BS and {key!r} must be numbers") from None
    small = min((count for _, count in runs), default=math.nan) < 1000
    if unit == "samples" and small:
        problem = f"{key!r} goes down to {min(count for _, count in runs):g}: those are epochs"
        raise ConfigError("--unit", unit, problem, "write --unit epochs --dataset-size N")
    scale = _epoch(path, dataset_size) if unit == "epochs" or (unit is None and small) else 1
    return Points([batch for batch, _ in runs], [count * scale for _, count in runs])


def _check_columns(names: Sequence[str], path: str) -> None:
    if "batch_size" not in names or not {"samples", "steps", "epochs"} & set(names):
        problem = f"its columns are {', '.join(names) or 'none'}"
        advice = "there must be batch_size, and one of samples, steps and epochs, between commas"
        raise ConfigError("FILE", path, problem, advice)


def _table(rows: Iterable[Mapping[str, Any]], path: str, dataset_size: int | None) -> Points:
    batches: list[float] = []
    samples: list[float] = []
    missed = 0
    for number, row in enumerate(rows, 2):
        if str(row.get("reached", "")).lower() in _FALSE:
            missed += 1
            continue
        unit = next((name for name in ("samples", "steps", "epochs") if row.get(name) not in (None, "")), None)
        if unit is None or row.get("batch_size") in (None, ""):
            advice = "name the columns batch_size, and samples, steps or epochs"
            raise ConfigError("FILE", path, f"line {number} has no batch, or nothing that it took", advice)
        try:
            batch, count = float(row["batch_size"]), float(row[unit])
        except ValueError:
            raise ConfigError("FILE", path, f"line {number}: batch_size and {unit} must be numbers") from None
        scale = {"samples": 1.0, "steps": batch}.get(unit) or _epoch(path, dataset_size)
        batches.append(batch)
        samples.append(count * scale)
    if not batches:
        raise ConfigError("FILE", path, f"holds no run that reached its target, and {missed} that did not")
    return Points(batches, samples, missed)


def _epoch(path: str, dataset_size: int | None) -> int:
    if dataset_size is None:
        raise ConfigError("--dataset-size", None, f"{path} counts epochs", "write --dataset-size N, samples an epoch")
    return dataset_size
