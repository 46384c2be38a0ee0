"""The measurements of a sweep in one table, as CSV or parquet: one row per evaluation.

All columns but the last two lines of this list have the same value in all rows of a trial.

============================== ===========================================================================================
``trial``                      number of the trial within the table
``dataset``, ``model``,        the workload
``optimizer``
``batch_size``                 global batch size, in samples
``seed``                       of the run
``status``                     complete (its budget is spent, or its target reached), diverged, pruned (stopped because
                               another trial was far ahead), failed (with an error), unfinished
``epoch``                      samples per epoch; empty if unknown
``processes``                  number of processes of the run
``seconds``                    wall time of the run
``run``                        its directory, relative to the table; empty if there is none
``parameter/KEY``              what the sweep set, by key path of the config: ``parameter/optimizer.lr``; null: it set the
                               key to null; empty: it did not set it
``step``, ``samples``          position of the measurement in the run; empty for a trial without measurements
``train/NAME``, ``val/NAME``   the measured values: ``train/loss``, ``val/loss``, ``val/accuracy``, ...
============================== ===========================================================================================
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from bellwether.trainer import run_paths
from bellwether.trainer.config import ConfigError, units
from bellwether.trainer.config.renamed import convert_paths

Status = Literal["complete", "diverged", "pruned", "failed", "unfinished"]
OLD_STATUSES: dict[Any, Status] = {"beaten": "pruned"}  #: names in tables of older versions
#: a list or mapping is text in the file, as in [0.9, 0.99]
Value = float | int | str | bool | list[Any] | dict[str, Any] | None
Measurement = Mapping[str, float]  #: ``step``, ``samples`` and measured values: ``val/loss``, ...

_HEAD = (
    "trial", "dataset", "model", "optimizer", "batch_size", "seed", "status", "epoch", "processes", "seconds", "run",
)  # fmt: skip
_NEEDED = ("trial", "batch_size", "step")
_SPLITS = ("train/", "val/", "test/")
_PARAMETER = "parameter/"
_NULL = "null"
_TARGET = re.compile(r"^\s*([\w/.-]+)\s*(<=|>=)\s*([-+.\w]+)\s*$")


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: its settings and its measurements."""

    trial: int
    dataset: str
    model: str
    optimizer: str
    batch_size: int
    seed: int
    status: Status
    parameters: Mapping[str, Value]  #: what the sweep set, by key path of the config
    measurements: Sequence[Measurement]  #: in order of their steps
    epoch: int | None = None  #: samples
    processes: int = 1
    seconds: float = 0.0
    run: str = ""  #: run directory, relative to the table


class Target(units.Target):
    """A target for any metric of a table: ``val/accuracy >= 0.9`` or ``val/loss <= 2.5``."""

    @classmethod
    def parse(cls, text: Any, key: str = "--target") -> Target:
        """Parse a target.

        Raises:
            ConfigError: if the text is not a comparison of a metric with a number.
        """
        match = _TARGET.match(text)
        try:
            value = float(match[3]) if match else math.nan
        except ValueError:
            value = math.nan
        if match is None or not math.isfinite(value):
            raise ConfigError(key, text, "is not a target", "write 'val/loss <= 2.5' or 'val/accuracy >= 0.9'")
        return cls(match[1], value, match[2] == ">=")

    def reached(self, trial: Trial) -> Measurement | None:
        """The first measurement that satisfies the target."""
        return next((m for m in trial.measurements if self.holds(m)), None)

    def best(self, trial: Trial) -> float | None:
        """The best value of the metric in a trial; None if it was never measured."""
        values = [m[self.metric] for m in trial.measurements if math.isfinite(m.get(self.metric, math.nan))]
        return (max(values) if self.at_least else min(values)) if values else None


def write(path: str | Path, trials: Sequence[Trial]) -> None:
    """Write trials to a ``.csv`` or ``.parquet`` file, atomically.

    Raises:
        ConfigError: if the file name has neither suffix.
    """
    path = Path(path)
    kind = _kind(path)
    parameters = sorted({key for trial in trials for key in trial.parameters})
    metrics = sorted({key for t in trials for m in t.measurements for key in m} - {"step", "samples"})
    columns = [*_HEAD, *(_PARAMETER + key for key in parameters), "step", "samples", *metrics]
    rows = [row for trial in trials for row in _rows(trial)]
    with run_paths.replacing(path) as partial:
        if kind == ".csv":
            with open(partial, "w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, columns, restval="")
                writer.writeheader()
                writer.writerows({key: _text(value) for key, value in row.items()} for row in rows)
        else:
            import pyarrow
            import pyarrow.parquet

            # A parameter may be a number for one optimizer and text for another.
            data = {name: _one_type([row.get(name) for row in rows]) for name in columns}
            pyarrow.parquet.write_table(pyarrow.table(data), partial)


def read(path: str | Path, key: str = "FILE") -> list[Trial]:
    """Read the trials of a table, in order of their numbers.

    Args:
        key: name of the command line argument, for errors.

    Raises:
        ConfigError: naming the file and what is wrong with it.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(key, str(path), "does not exist", "give a .csv or .parquet file, or a sweep's directory")
    try:
        if _kind(path) == ".csv":
            with open(path, newline="", encoding="utf-8-sig") as stream:
                rows: Iterable[Mapping[str, Any]] = list(csv.DictReader(stream))
        else:
            import pyarrow.parquet

            rows = pyarrow.parquet.read_table(path).to_pylist()
        return from_rows(rows, str(path), key)
    except OSError as error:
        raise ConfigError(key, str(path), f"cannot be read: {error.strerror or error}") from None
    except (ValueError, csv.Error) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(key, str(path), f"cannot be read: {' '.join(str(error).split())}") from None


def from_rows(rows: Iterable[Mapping[str, Any]], path: str, key: str = "FILE") -> list[Trial]:
    """The trials of a table's rows; `path` and `key` are for errors."""
    found: dict[int, list[dict[str, Any]]] = {}
    for number, row in enumerate(rows, 2):
        missing = [name for name in _NEEDED if name not in row]
        if missing:
            raise ConfigError(key, path, f"has no column {missing[0]}", "see docs/sweeps.md for the table's layout")
        try:
            found.setdefault(int(row["trial"]), []).append({k: _value(v) for k, v in row.items() if k is not None})
        except (TypeError, ValueError):
            raise ConfigError(key, path, f"line {number}: trial: {row['trial']!r} is not a number") from None
    return [_trial(number, found[number], path, key) for number in sorted(found)]


def is_table(columns: Iterable[str]) -> bool:
    """Whether a file with these columns is a measurements table, and not a table with one row per run."""
    return set(_NEEDED) <= set(columns)


def _trial(number: int, rows: list[dict[str, Any]], path: str, key: str) -> Trial:
    head = rows[0]
    _check_head(number, rows, path, key)
    status: Any = head.get("status") or "complete"
    status = OLD_STATUSES.get(status, status)
    batch = head["batch_size"]
    if status not in get_args(Status):
        advice = f"write one of {', '.join(get_args(Status))}"
        raise ConfigError(key, path, f"trial {number}: status: {status!r} is unknown", advice)
    if not _is_number(batch) or batch <= 0 or batch != int(batch):
        raise ConfigError(key, path, f"trial {number}: batch_size: {batch!r} is not a whole number above 0")
    for name in ("seed", "epoch", "processes", "seconds"):
        if head.get(name) is not None and not _is_number(head[name]):
            raise ConfigError(key, path, f"trial {number}: {name}: {head[name]!r} is not a number")
    try:
        measurements = [measurement(row, batch) for row in rows if row["step"] is not None]
    except ValueError as error:
        raise ConfigError(key, path, f"trial {number}: {error}") from None
    return Trial(
        number, str(head.get("dataset") or ""), str(head.get("model") or ""), str(head.get("optimizer") or ""),
        int(batch), int(head.get("seed") or 0), status,
        convert_paths(_parameters(head)),
        sorted(measurements, key=lambda m: m["step"]), epoch=head.get("epoch"), processes=int(head.get("processes") or 1),
        seconds=float(head.get("seconds") or 0.0), run=str(head.get("run") or ""),
    )  # fmt: skip


def _parameters(head: Mapping[str, Any]) -> dict[str, Any]:
    given = {k.removeprefix(_PARAMETER): v for k, v in head.items() if k.startswith(_PARAMETER) and v is not None}
    return {key: None if value == _NULL else value for key, value in given.items()}


def _check_head(number: int, rows: list[dict[str, Any]], path: str, key: str) -> None:
    """Refuse two runs with the same number, as in the concatenated tables of two sweeps."""
    for name in (name for name in rows[0] if name in _HEAD or name.startswith(_PARAMETER)):
        first = rows[0][name]
        for value in (row[name] for row in rows):
            if value != first and str(value) != str(first):  # NaN differs from itself
                problem = f"trial {number}: {name}: {first!r} in one row and {value!r} in another"
                advice = "give each trial its own number, or keep the tables of two sweeps apart"
                raise ConfigError(key, path, problem, advice)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def measurement(row: Mapping[str, Any], batch: float) -> dict[str, float]:
    """The measurement in a row of text or values.

    Raises:
        ValueError: naming the column that is not a number.
    """
    given = {name: _value(row[name]) for name in row if name in ("step", "samples") or name.startswith(_SPLITS)}
    found = {name: value for name, value in given.items() if value is not None}
    wrong = next((name for name, value in found.items() if isinstance(value, str | bool)), None)
    if wrong is not None:
        raise ValueError(f"{wrong}: {found[wrong]!r} is not a number")
    if not math.isfinite(found["step"]):
        raise ValueError(f"step: {found['step']} is not a number of steps")
    return {"samples": found["step"] * batch, **found, "step": int(found["step"])}


def _rows(trial: Trial) -> list[dict[str, Any]]:
    head = {name: getattr(trial, name) for name in _HEAD}
    head |= {
        _PARAMETER + key: _NULL if value is None else str(value) if isinstance(value, list | dict) else value
        for key, value in trial.parameters.items()
    }
    return [{**head, **measurement} for measurement in trial.measurements] or [head]


def _kind(path: Path) -> str:
    """The suffix of a table, which need not exist."""
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise ConfigError("FILE", str(path), "has an unknown suffix", "use .csv or .parquet")
    return path.suffix.lower()


def _text(value: Any) -> Any:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else value


def _value(text: Any) -> Any:
    """Parse a table entry: number, boolean, text, or None if it is empty."""
    if not isinstance(text, str):
        return text
    if text == "":
        return None
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _one_type(values: list[Any]) -> list[Any]:
    """Convert a column to one type: numbers to float, mixed types to text."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) < 2 or kinds == {int, float}:
        return [float(v) if float in kinds and v is not None else v for v in values]
    return [None if value is None else str(_text(value)) for value in values]
