"""``bellwether convert FROM TO``: convert measurements from one layout to another."""

from __future__ import annotations

from pathlib import Path

from bellwether.experiments.analysis import io, shallue
from bellwether.experiments.sweep import measurements
from bellwether.trainer.config import ConfigError
from bellwether.trainer.report.facts import count


def convert(source: str, to: str) -> int:
    """Convert measurements. Returns the exit status for the shell.

    Args:
        source: see `io.read`.
        to: a ``.csv`` or ``.parquet`` file; without a suffix, a directory in the layout of Shallue et al.

    Raises:
        ConfigError: if `source` cannot be read, or `to` exists or cannot be written.
    """
    trials = io.read(source, "FROM")
    if Path(to).exists():
        raise ConfigError("TO", to, "exists already", "choose another path")
    try:
        if Path(to).suffix:
            measurements.write(to, trials)
        else:
            shallue.write(to, trials)
    except OSError as error:
        raise ConfigError("TO", to, f"cannot be written: {error.strerror or error}", "choose another path") from None
    rows = sum(len(trial.measurements) for trial in trials)
    print(f"{to}: {count(len(trials), 'trial')}, {count(rows, 'measurement')}")
    return 0
