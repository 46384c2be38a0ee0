"""Loads the config of a run that is about to start. Imports are light: torch is needed where there are patterns alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bellwether.trainer.config import Config, load_with_origins, phases


def load_checked(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """As `bellwether.trainer.config.load`; also, patterns of parameter names must match parameters of the model.

    Where the config has such patterns, this builds the model without its memory, which takes seconds.

    Raises:
        ConfigErrors: with one `ConfigError` for each thing that is wrong.
    """
    config, origins = load_with_origins(path, overrides)
    if any(c.optimizer.include or c.optimizer.exclude or c.optimizer.lr_scale for c in phases(config)):
        from bellwether.trainer.param_groups import check_patterns

        check_patterns(config, origins, str(path))
    return config
