"""Validates a mapping as a config: as a whole, and once for each phase. And back: a config as plain types, or as YAML text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from bellwether.trainer.config.error_messages import explain, meaning, nearest
from bellwether.trainer.config.errors import ConfigError, ConfigErrors
from bellwether.trainer.config.key_paths import KeyPath, Origins, at, dotted, leaves, merge, origin_of
from bellwether.trainer.config.recipes import expanded
from bellwether.trainer.config.renamed import convert
from bellwether.trainer.config.schema import Config
from bellwether.trainer.config.yaml_syntax import to_text

PHASE_KEYS = ("duration", "batch", "data", "optimizer", "scaling", "schedule")
# A phase continues with the model and the optimizer state of the one before, so these keys cannot change.
PHASE_FIXED = ("optimizer.name", "data.kind", "data.tokenizer", "data.vocabulary_size", "data.validation_share")


def validate(raw: dict[str, Any], origins: Origins | None = None, source: str = "") -> Config:
    """Validates a mapping as YAML gives it: as a whole, and once for each phase. Renamed keys are accepted.

    Raises:
        ConfigErrors: with one `ConfigError` for each thing that is wrong.
    """
    origins = origins or {}
    if large := next(_large_numbers(raw, ()), None):
        problem = "a whole number of more than 300 digits"
        raise ConfigErrors(
            [ConfigError(dotted(large), None, problem, "write a smaller one", origin_of(large, origins, source))]
        )
    raw = convert(raw, source=source)
    try:
        raw = expanded(raw, origins, source)
    except ConfigError as error:
        raise ConfigErrors([error]) from None
    config, errors = _check(raw, origins, source)
    for index, phase in enumerate(raw.get("phases") or [] if not errors else []):
        errors += _phase_errors(raw, phase, index, origins, source)
    if errors:
        raise ConfigErrors(errors)
    assert config is not None
    return config


def _large_numbers(node: Any, path: KeyPath) -> Iterator[KeyPath]:
    """The paths of whole numbers that no field can hold: they have no float."""
    if isinstance(node, int) and abs(node) >= 10**300:
        yield path
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield from _large_numbers(value, (*path, key))


def phases(config: Config) -> list[Config]:
    """One config for each phase: the keys of the run, overridden by those of the phase."""
    raw = dump(config)
    overlays = raw.pop("phases") or [{}]
    return [Config.model_validate(merge(raw, overlay)) for overlay in overlays]


def dump(config: Config) -> dict[str, Any]:
    """A mapping of plain YAML types, from which `validate` makes the same config."""
    return config.model_dump(mode="json", by_alias=True)


def to_yaml(config: Config) -> str:
    """The resolved config as YAML text."""
    return to_text(dump(config))


def _check(raw: dict[str, Any], origins: Origins, source: str) -> tuple[Config | None, list[ConfigError]]:
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        problems = [explain(e, raw, origins, source) for e in error.errors(include_url=False)]
    else:
        validated = dump(config)
        # pydantic accepts true as the number 1.
        problems = [
            ConfigError(dotted(leaf), value, "not a number", meaning(leaf, raw), origin_of(leaf, origins, source))
            for leaf in leaves(raw)
            if isinstance(value := at(raw, leaf), bool) and not isinstance(at(validated, leaf), bool)
        ]
        if not problems:
            return config, []
    return None, list({str(e): e for e in problems}.values())


def _phase_errors(
    raw: dict[str, Any], phase: dict[str, Any], index: int, origins: Origins, source: str
) -> list[ConfigError]:
    prefix: KeyPath = ("phases", index)
    errors = []
    for key in phase:
        if key not in PHASE_KEYS:
            near = nearest(str(key), PHASE_KEYS)
            errors.append(
                ConfigError(
                    dotted((*prefix, key)),
                    phase[key],
                    "a phase cannot set this",
                    near,
                    origin_of((*prefix, key), origins, source),
                )
            )
    for fixed in PHASE_FIXED:
        section, key = fixed.split(".")
        inner = phase.get(section)
        if isinstance(inner, dict) and key in inner and inner[key] != raw[section].get(key):
            path = (*prefix, section, key)
            errors.append(
                ConfigError(
                    dotted(path),
                    inner[key],
                    "cannot differ between phases",
                    f"set {fixed} once, outside phases",
                    origin_of(path, origins, source),
                )
            )
    if errors:
        return errors
    whole = merge({k: v for k, v in raw.items() if k != "phases"}, phase)
    moved = {leaf[2:]: file for leaf, file in origins.items() if leaf[:2] == prefix}
    _, errors = _check(whole, {**origins, **moved}, source)
    for error in errors:
        error.key = f"{dotted(prefix)}.{error.key}"
    return errors
