"""Checks single values of a file of measurements, and options that do not apply to it."""

from __future__ import annotations

import math
from typing import Any

from bellwether.trainer.config import ConfigError

_APPLIES_TO = {
    "unit": "MLPerf files", "dataset_size": "files that count epochs",
    "target": "a sweep's measurements", "optimizer": "a sweep's measurements",
}  # fmt: skip
_REACHED = {"true": True, "yes": True, "y": True, "1": True, "false": False, "no": False, "n": False, "0": False}


def refuse(file: str, **options: object) -> None:
    """Refuse options that do not apply to a file.

    Raises:
        ConfigError: naming the first of them that is given.
    """
    for name, value in options.items():
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(option, value, f"applies to {_APPLIES_TO[name]}, and {file}", "remove it")


def reached(value: Any, where: str, path: str) -> bool:
    """Parse whether a run reached its target.

    Raises:
        ConfigError: naming the place.
    """
    text = "" if value is None else str(value).strip().lower()
    if text not in _REACHED:
        problem = f"{where}: reached: {value!r} is neither true nor false" if text else f"{where}: reached is empty"
        raise ConfigError("FILE", path, problem, "write true or false")
    return _REACHED[text]


def batch_size(value: Any, what: str, path: str) -> float:
    """Parse a batch size.

    Raises:
        ConfigError: naming the place.
    """
    batch = positive(value, what, path)
    if not batch.is_integer():
        raise ConfigError("FILE", path, f"{what}: {value!r} is not a whole number")
    return batch


def positive(value: Any, what: str, path: str) -> float:
    """Parse a number above 0.

    Raises:
        ConfigError: naming the place.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigError("FILE", path, f"{what}: {value!r} is not a number above 0")
    return number
