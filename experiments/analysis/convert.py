"""``bellwether convert FROM TO``: measurements from one layout to another."""

from __future__ import annotations

from pathlib import Path

from bellwether.experiments.analysis import io, shallue
from bellwether.experiments.sweep import measurements as table
from bellwether.trainer.config import ConfigError
from bellwether.trainer.report.facts import count


def convert(source: str, to: str) -> int:
    """Read and write anew; the kind of `to` is told by its suffix, and without one it is Shallue et al.'s directory.

    Raises:
        ConfigError: if something lies at `to` already, or nothing can be written there, besides what `directory.read` raises.
    """
    found = io.read(source, "FROM")
    if Path(to).exists():
        raise ConfigError("TO", to, "exists already", "name another")
    try:
        if Path(to).suffix:
            table.write(to, found)
        else:
            shallue.write(to, found)
    except OSError as error:
        raise ConfigError("TO", to, f"cannot be written: {error.strerror or error}", "name another") from None
    measurements = sum(len(trial.measurements) for trial in found)
    print(f"{to}: {count(len(found), 'trial')}, {count(measurements, 'measurement')}")
    return 0
