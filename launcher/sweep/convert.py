"""``bellwether convert FROM TO``: measurements from one layout to another; and reading them in whichever they are."""

from __future__ import annotations

from pathlib import Path

from launcher.sweep import shallue, table, trials
from launcher.sweep.table import Trial
from trainer.config import ConfigError


def read(path: str | Path, key: str = "FILE") -> list[Trial]:
    """The trials of a sweep's directory, of a table (.csv, .parquet), or of a directory in Shallue et al.'s layout.

    Raises:
        ConfigError: if it is none of these, or cannot be read.
    """
    path = Path(path)
    if path.is_dir() and trials.is_study(path):
        return trials.open_study(path).collect()
    return shallue.read(path, key) if path.is_dir() else table.read(path, key)


def convert(source: str, to: str) -> int:
    """Read and write anew; the kind of `to` is told by its suffix, and without one it is Shallue et al.'s directory.

    Raises:
        ConfigError: if something lies at `to` already, besides what `read` raises.
    """
    found = read(source, "FROM")
    if Path(to).exists():
        raise ConfigError("TO", to, "exists already", "name another")
    if Path(to).suffix:
        table.write(to, found)
    else:
        shallue.write(to, found)
    print(f"{to}: {len(found)} trials, {sum(len(trial.measurements) for trial in found):,} measurements")
    return 0
