"""The config of a run: YAML validated by pydantic models, with errors that say what to change."""

from bellwether.trainer.config.errors import ConfigError, ConfigErrors
from bellwether.trainer.config.load import load, load_with_origins
from bellwether.trainer.config.schema import Config
from bellwether.trainer.config.shipped import shipped_recipes
from bellwether.trainer.config.units import Duration, Span, Target
from bellwether.trainer.config.validation import dump, phases, to_yaml, validate

__all__ = [
    "Config",
    "ConfigError",
    "ConfigErrors",
    "Duration",
    "Span",
    "Target",
    "dump",
    "load",
    "load_with_origins",
    "phases",
    "shipped_recipes",
    "to_yaml",
    "validate",
]
