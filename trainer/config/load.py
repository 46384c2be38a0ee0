"""Reads a config: YAML files that extend one another, then overrides, then validation.

The file (or "command line") that has set each leaf is recorded, so that error messages can name it.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bellwether.trainer.config.error_messages import (
    COMMAND_LINE,
    KeyPath,
    Origins,
    at,
    dotted,
    explain,
    meaning,
    nearest,
    origin_of,
)
from bellwether.trainer.config.errors import ConfigError, ConfigErrors
from bellwether.trainer.config.recipes import expanded
from bellwether.trainer.config.renamed import Renaming, convert, convert_setting, report
from bellwether.trainer.config.schema import Config
from bellwether.trainer.config.shipped import find, is_name, shipped_recipes
from bellwether.trainer.config.units import DIGITS

PHASE_KEYS = ("duration", "batch", "data", "optimizer", "scaling", "schedule")
# A phase continues with the model and the optimizer state of the one before, so these keys cannot change.
PHASE_FIXED = ("optimizer.name", "data.kind", "data.tokenizer", "data.vocabulary_size", "data.validation_share")


class _Loader(yaml.SafeLoader):
    """YAML in which keys are text, duplicate keys are errors, and numbers are what people expect.

    1e-3 is a number; 010 (octal 8 in YAML 1.1), 1:30 (90 in YAML 1.1) and 2020-01-01 are text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, form) for tag, form in forms if tag.rpartition(":")[2] in ("null", "bool", "merge")]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        plain = isinstance(key, yaml.ScalarNode)
        if not plain or key.value in seen:
            problem = f"the key {key.value!r} appears twice" if plain else "a key is a word"
            raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        seen.add(key.value)
    loader.flatten_mapping(node)
    return {key.value: loader.construct_object(value, deep=True) for key, value in node.value}


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would read as a number."""


_INT = re.compile(r"^[-+]?(0|[1-9](_?[0-9])*)$")
_FLOAT = re.compile(
    rf"^[-+]?(({DIGITS}\.({DIGITS})?|\.{DIGITS})([eE][-+]?[0-9]+)?|{DIGITS}[eE][-+]?[0-9]+|\.(inf|Inf|INF|nan|NaN|NAN))$"
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """Parses YAML as `_Loader` describes. Raises yaml.YAMLError or ValueError."""
    return yaml.load(text, Loader=_Loader)


def yaml_problem(error: Exception) -> str:
    """The message of a YAML error, on one line."""
    return " ".join(str(error).replace('in "<unicode string>", ', "at ").split())


def load(path: str | Path, overrides: Sequence[str] = (), *, quiet: bool = False) -> Config:
    """Reads and validates a config file, or the shipped recipe of that name, with ``key.path=value`` overrides applied.

    Args:
        quiet: do not log that a key has been renamed; for files that Bellwether wrote itself.

    Raises:
        ConfigErrors: with one `ConfigError` for each thing that is wrong.
    """
    found: list[Renaming] = []
    raw, origins = _read(Path(path), (), found)
    for override in overrides:
        _override(raw, origins, override, found)
    if not quiet:
        report(found)
    if errors := _overridden_by_phases(raw, origins):
        raise ConfigErrors(errors)
    return validate(raw, origins, str(path))


def validate(raw: dict[str, Any], origins: Origins | None = None, source: str = "") -> Config:
    """Validates a mapping as YAML gives it: as a whole, and once for each phase. Renamed keys are accepted.

    Raises:
        ConfigErrors: with one `ConfigError` for each thing that is wrong.
    """
    origins = origins or {}
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


def phases(config: Config) -> list[Config]:
    """One config for each phase: the keys of the run, overridden by those of the phase."""
    raw = dump(config)
    overlays = raw.pop("phases") or [{}]
    return [Config.model_validate(_merged(raw, overlay)) for overlay in overlays]


def dump(config: Config) -> dict[str, Any]:
    """A mapping of plain YAML types, from which `validate` makes the same config."""
    return config.model_dump(mode="json", by_alias=True)


def to_yaml(config: Config) -> str:
    """The resolved config as YAML text."""
    return yaml.dump(dump(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _read(path: Path, children: tuple[Path, ...], found: list[Renaming]) -> tuple[dict[str, Any], Origins]:
    """Reads a file and the files that it extends. `children` are the files that extend this one."""
    key = "extends" if children else "CONFIG"
    source = str(children[-1]) if children else ""
    named = path
    try:
        path = (children[-1].parent if children else Path()) / path.expanduser()
        if is_name(named) and not path.is_file():
            path = find(named) or path
        circle = path.resolve() in [p.resolve() for p in children]
        raw = {} if circle else parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigErrors([_not_found(named, path, key, source)]) from None
    except (OSError, ValueError, RuntimeError) as error:  # not text, a NUL in the path, an unknown ~user
        raise ConfigErrors([ConfigError(key, str(path), f"cannot be read: {error}", "", source)]) from None
    except yaml.YAMLError as error:
        raise ConfigErrors([ConfigError(key, str(path), f"not YAML: {yaml_problem(error)}", "", source)]) from None
    if circle:
        raise ConfigErrors([ConfigError(key, str(path), "extends itself", "remove the circle", source)])
    if not isinstance(raw, dict):
        raise ConfigErrors([ConfigError(key, str(path), "holds no mapping", "write key: value lines", source)])
    if "batches" in raw and "config" in raw:
        raise ConfigErrors([ConfigError(key, str(path), "is a sweep", "bellwether sweep runs it", source)])
    base: dict[str, Any] = {}
    origins: Origins = {}
    if "extends" in raw:
        parent = raw.pop("extends")
        if not isinstance(parent, str):
            raise ConfigErrors([ConfigError("extends", parent, "not a path", "name one YAML file", str(path))])
        base, origins = _read(Path(parent), (*children, path), found)
    raw = convert(raw, source=str(path), found=found)
    for leaf in _leaves(raw):
        origins[leaf] = str(path)
    return _merged(base, raw), origins


def _not_found(named: Path, path: Path, key: str, source: str) -> ConfigError:
    if is_name(named):
        near = difflib.get_close_matches(named.name, shipped_recipes(), 3, 0.5) or shipped_recipes()
        hint = f"give the path of a YAML file, or one of {', '.join(near)}"
        return ConfigError(key, str(named), "no such file or shipped recipe", hint, source)
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1, 0.5)
    hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a YAML file, as in configs/"
    return ConfigError(key, str(path), "no such file", hint, source)


def _override(raw: dict[str, Any], origins: Origins, text: str, found: list[Renaming]) -> None:
    where = COMMAND_LINE
    name, equals, value = text.partition("=")
    parts = re.sub(r"\[(\d+)\]", r".\1", name.strip()).split(".")
    if not equals or not all(parts) or parts[0].isdecimal():
        raise ConfigErrors(
            [ConfigError(text, "", "not an override", "write key.path=value, as in optimizer.lr=2e-3", where)]
        )
    try:
        parsed = parse_yaml(value)
    except (yaml.YAMLError, ValueError):
        parsed = value
    keys: KeyPath = tuple(int(part) if part.isdecimal() else part for part in parts)
    keys, parsed = convert_setting(keys, parsed, source=where, found=found)
    if keys[0] == "schedule" and len(keys) > 1 and isinstance(raw.get("schedule"), str):
        # A recipe given by its name alone becomes a section, so that other keys can be added.
        raw["schedule"] = {"recipe": raw["schedule"]}
        origins["schedule", "recipe"] = origins.pop(("schedule",))
    node: Any = raw
    for depth, key in enumerate(keys):
        if not (isinstance(node, dict) if isinstance(key, str) else isinstance(node, list) and key < len(node)):
            parent = dotted(keys[:depth])
            if isinstance(node, list):
                problem = f"{parent} is a list of {len(node)}, counted from 0"
            else:
                problem = f"{parent} is no list" if isinstance(key, int) else f"{parent} holds no keys of its own"
            advice = f"set it as a whole: {parent}=..."
            raise ConfigErrors([ConfigError(dotted(keys[: depth + 1]), value, problem, advice, where)])
        if depth == len(keys) - 1:
            node[key] = parsed
        elif isinstance(node, dict) and key not in node:
            node[key] = {}
            origins[keys[: depth + 1]] = where
        node = node[key]
    for leaf in _leaves(parsed):
        origins[keys + leaf] = where


def _overridden_by_phases(raw: dict[str, Any], origins: Origins) -> list[ConfigError]:
    """Errors for keys that the command line sets for the whole run, but that every phase sets itself."""
    phases, schedule = raw.get("phases"), raw.get("schedule")
    if not isinstance(phases, list) or not phases:
        return []
    if isinstance(schedule, str) or (isinstance(schedule, dict) and schedule.get("recipe") is not None):
        return []  # the recipe then defines the phases
    candidates = [
        k
        for k, where in origins.items()
        if where == COMMAND_LINE and not isinstance(at(raw, k), dict) and not isinstance(k[-1], int)
    ]
    advice = "write phases.0.{0}=..., phases.1.{0}=... and so on"
    return [
        ConfigError(
            dotted(k), at(raw, k), "has no effect: every phase sets its own", advice.format(dotted(k)), COMMAND_LINE
        )
        for k in candidates
        if k[0] in PHASE_KEYS and all(at(phase, k) is not None for phase in phases)
    ]


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merges `over` into a copy of `base`. Mappings are merged, unless their `kind` differs; everything else is replaced."""
    merged = copy.deepcopy(base)
    for key, value in over.items():
        old = merged.get(key)
        same_kind = (
            isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind")
        )
        merged[key] = _merged(old, value) if same_kind else copy.deepcopy(value)  # type: ignore[arg-type]
    return merged


def _leaves(value: Any) -> Iterable[KeyPath]:
    """The key paths of a value, of everything inside it, and of itself, ()."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    yield ()
    for key, inner in items:
        for leaf in _leaves(inner):
            yield (key, *leaf)


def _check(raw: dict[str, Any], origins: Origins, source: str) -> tuple[Config | None, list[ConfigError]]:
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        found = [explain(e, raw, origins, source) for e in error.errors(include_url=False)]
    else:
        validated = dump(config)
        # pydantic accepts true as the number 1.
        found = [
            ConfigError(dotted(leaf), value, "not a number", meaning(leaf, raw), origin_of(leaf, origins, source))
            for leaf in _leaves(raw)
            if isinstance(value := at(raw, leaf), bool) and not isinstance(at(validated, leaf), bool)
        ]
        if not found:
            return config, []
    return None, list({str(e): e for e in found}.values())


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
    whole = _merged({k: v for k, v in raw.items() if k != "phases"}, phase)
    moved = {leaf[2:]: file for leaf, file in origins.items() if leaf[:2] == prefix}
    _, errors = _check(whole, {**origins, **moved}, source)
    for error in errors:
        error.key = f"{dotted(prefix)}.{error.key}"
    return errors
