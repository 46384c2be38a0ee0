"""Reads a config: YAML files that extend one another, then overrides, then validation.

The file (or "command line") that has set each leaf is recorded, so that error messages can name it.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from bellwether.trainer.config.errors import ConfigError, ConfigErrors
from bellwether.trainer.config.key_paths import Origins, leaves, merge
from bellwether.trainer.config.overrides import apply_override, overridden_by_phases
from bellwether.trainer.config.renamed import Renaming, convert, report
from bellwether.trainer.config.schema import Config
from bellwether.trainer.config.shipped import find, is_name, shipped_recipes
from bellwether.trainer.config.validation import validate
from bellwether.trainer.config.yaml_syntax import parse_yaml, yaml_problem


def load(path: str | Path, overrides: Sequence[str] = (), *, quiet: bool = False) -> Config:
    """Reads and validates a config file, or the shipped recipe of that name, with ``key.path=value`` overrides applied.

    Args:
        quiet: do not log that a key has been renamed; for files that Bellwether wrote itself.

    Raises:
        ConfigErrors: with one `ConfigError` for each thing that is wrong.
    """
    return load_with_origins(path, overrides, quiet=quiet)[0]


def load_with_origins(
    path: str | Path, overrides: Sequence[str] = (), *, quiet: bool = False
) -> tuple[Config, Origins]:
    """As `load`, with the file, or ``command line``, that has set each key."""
    renamings: list[Renaming] = []
    raw, origins = _read(Path(path), (), renamings)
    for override in overrides:
        apply_override(raw, origins, override, renamings)
    if not quiet:
        report(renamings)
    if errors := overridden_by_phases(raw, origins):
        raise ConfigErrors(errors)
    return validate(raw, origins, str(path)), origins


def _read(path: Path, children: tuple[Path, ...], renamings: list[Renaming]) -> tuple[dict[str, Any], Origins]:
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
        base, origins = _read(Path(parent), (*children, path), renamings)
    raw = convert(raw, source=str(path), renamings=renamings)
    for leaf in leaves(raw):
        origins[leaf] = str(path)
    return merge(base, raw), origins


def _not_found(named: Path, path: Path, key: str, source: str) -> ConfigError:
    if is_name(named):
        near = difflib.get_close_matches(named.name, shipped_recipes(), 3, 0.5) or shipped_recipes()
        hint = f"give the path of a YAML file, or one of {', '.join(near)}"
        return ConfigError(key, str(named), "no such file or shipped recipe", hint, source)
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1, 0.5)
    hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a YAML file, as in configs/"
    return ConfigError(key, str(path), "no such file", hint, source)
