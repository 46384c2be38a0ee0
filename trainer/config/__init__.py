"""What a run is: YAML validated by pydantic models, with errors that say what to change."""

from trainer.config.errors import ConfigError, ConfigErrors
from trainer.config.load import dump, load, phases, to_yaml, validate
from trainer.config.schema import Config
from trainer.config.units import Duration, Span, Target

__all__ = [
    "Config",
    "ConfigError",
    "ConfigErrors",
    "Duration",
    "Span",
    "Target",
    "dump",
    "load",
    "phases",
    "to_yaml",
    "validate",
]
