"""Loads the config of a run that is about to start. Imports are light: torch is needed only where the model must be built."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bellwether.trainer.config import Config, load_with_origins, phases
from bellwether.trainer.config.schema import PATTERNS
from bellwether.trainer.models.architecture import Architecture


def load_checked(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """As `bellwether.trainer.config.load`; also, patterns of parameter names must match parameters of the model.

    Where the config has such patterns, or an architecture of transformers by ``config`` or ``init``, this builds the model
    without its memory, which takes seconds.

    Raises:
        ConfigErrors: with one `ConfigError` for each thing that is wrong.
        ConfigError: if the model cannot be built.
    """
    config, origins = load_with_origins(path, overrides)
    if isinstance(config.model, Architecture) or any(
        any(getattr(c.optimizer, key) for key in PATTERNS) for c in phases(config)
    ):
        from bellwether.trainer.param_groups import check_patterns

        check_patterns(config, origins, str(path))
    return config
