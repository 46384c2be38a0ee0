"""Reads how many samples runs needed to reach a target, by batch size, from our files and those of others.

========================= ================================================================================================
``rcps_*.json``           MLPerf's reference convergence points: see `bellwether.experiments.analysis.mlperf_points`
``*.csv``, ``*.parquet``  one row per run: ``batch_size``, and one of ``samples``, ``steps`` and ``epochs`` to the target. An
                          optional column ``reached`` is yes or no in every row (or true and false, y and n, 1 and 0), and an
                          empty value is an error. A row with no has the length of the run, and says that the target lies
                          beyond; without a length it is counted and left out. An optional column ``evaluated_every`` is
                          the distance of evaluations, in the same unit
                          or a sweep's measurements (`bellwether.experiments.sweep.measurements`): the seeds of the best
                          setting at each batch size
========================= ================================================================================================
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bellwether.experiments.analysis import aggregate, io, mlperf_points
from bellwether.experiments.analysis.mlperf_points import Unit
from bellwether.experiments.analysis.points import Points
from bellwether.experiments.analysis.values import batch_size, positive, reached, refuse
from bellwether.experiments.sweep import measurements
from bellwether.trainer.config import ConfigError


def read(
    path: str | Path,
    unit: Unit | None = None,
    dataset_size: int | None = None,
    target: str | None = None,
    optimizer: str | None = None,
) -> Points:
    """Read the runs in a file.

    Args:
        unit: of MLPerf's numbers; None: the one of the benchmark.
        dataset_size: samples per epoch, required if the file counts epochs.
        target: of a sweep's measurements; None: the one in the ``sweep.yaml`` next to them.
        optimizer: of a sweep's measurements, required if they hold several.

    Raises:
        ConfigError: naming the file and what is wrong with it, or an option that does not apply to the file.
    """
    file = Path(path)
    try:
        if file.suffix.lower() == ".json":
            points = mlperf_points.read(json.loads(file.read_text()), str(path), unit, dataset_size)
            refuse(f"{path} is an MLPerf file", target=target, optimizer=optimizer)
        elif file.is_dir() or measurements.is_table(names := _columns(file)):
            points = _sweep(file, target, optimizer)
            refuse(f"{path} holds a sweep's measurements", unit=unit, dataset_size=dataset_size)
        else:
            _check_columns(names, str(path))
            points = _table(_rows(file), str(path), dataset_size)
            refuse(f"{path} has one row per run", unit=unit, target=target, optimizer=optimizer)
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
    points = from_cells(cells)
    if not any(points.reached):
        raise ConfigError("FILE", str(file), f"has no batch size at which the best setting reaches {goal}")
    return points


def from_cells(cells: Iterable[aggregate.Cell]) -> Points:
    """The seeds of the best setting at each batch size; those that missed the target count as censored."""
    batches, samples, hits, width = [], [], [], []
    names = set()
    for cell in cells:
        if not (cell.reached or cell.missed):  # pruned, failed or unfinished: no evidence about this batch size
            continue
        for run in cell.best.valid_runs:
            end = run.trained_samples
            if end > 0:
                batches.append(float(cell.batch))
                samples.append(end)
                hits.append(run.reached_target)
                width.append(run.evaluation_width)
                names.add(" ".join(part for part in (run.trial.model, run.trial.dataset) if part))
    return Points(batches, samples, hits, width, workload=names.pop() if len(names) == 1 else "")


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
    points, left_out, units = Points([], []), 0, set()
    for number, row in enumerate(rows, 2):
        hit = "reached" not in row or reached(row["reached"], f"line {number}", path)
        unit = next((name for name in ("samples", "steps", "epochs") if row.get(name) not in (None, "")), None)
        if unit is None and not hit:
            left_out += 1
            continue
        if unit is None or row.get("batch_size") in (None, ""):
            advice = "name the columns batch_size, and samples, steps or epochs"
            raise ConfigError("FILE", path, f"line {number} has no batch size, or no samples, steps or epochs", advice)
        batch = batch_size(row["batch_size"], f"line {number}: batch_size", path)
        count = positive(row[unit], f"line {number}: {unit}", path)
        every = row.get("evaluated_every")
        width = 0.0 if every in (None, "") else positive(every, f"line {number}: evaluated_every", path)
        scale = {"samples": 1.0, "steps": batch}.get(unit) or _epoch(path, dataset_size)
        points.batches.append(batch)
        points.samples.append(count * scale)
        points.reached.append(hit)
        points.width.append(width * scale)
        units.add(unit)
    if not any(points.reached):
        missed = left_out + len(points.reached)
        none = f"has no run that reached its target, and {missed:,} that missed it" if missed else "has no runs"
        raise ConfigError("FILE", path, none)
    if "epochs" not in units:
        refuse(f"{path} counts {' and '.join(sorted(units))}", dataset_size=dataset_size)
    return replace(points, left_out=left_out)


def _epoch(path: str, dataset_size: int | None) -> int:
    if dataset_size is None:
        raise ConfigError(
            "--dataset-size", None, f"{path} counts epochs", "write --dataset-size N, in samples per epoch"
        )
    return dataset_size
