"""Config keys that were renamed: the old name still works for one version, with one message that names the new one.

To rename a key, add a line to `RENAMED` and change the field in the schema. Files, overrides on the command line,
phases, the stored ``config.yaml`` of a run and the stored YAML of a sweep are then converted wherever they are read.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bellwether.trainer.config.errors import ConfigError, ConfigErrors
from bellwether.trainer.environment_rank import environment_rank

# Old key path: new key path. Only the last part may change: a key stays in its section.
RENAMED = {
    "optimizer.decay": "optimizer.weight_decay_mode",  # until 0.2
    "diagnose": "trajectory",  # until 0.2
    "log.tensorboard": "log.trackers",  # until 0.2
}
# Old key path: what its values are under the new name, if they changed too.
VALUES: dict[str, dict[bool, Any]] = {"log.tensorboard": {True: ["tensorboard"], False: []}}

_log = logging.getLogger(__name__)
_reported: set[str] = set()  # old key paths that this process has reported


@dataclass(frozen=True)
class Renaming:
    """A key that was found under its old name.

    Attributes:
        old, new: key paths.
        source: the file, or ``command line``, that has the old name.
    """

    old: str
    new: str
    source: str = ""


def convert(
    raw: Mapping[str, Any],
    renamed: Mapping[str, str] = RENAMED,
    *,
    source: str = "",
    renamings: list[Renaming] | None = None,
) -> dict[str, Any]:
    """A config, or any nested mapping with text for keys, with the new name of every renamed key.

    Args:
        raw: the mapping; it is not changed. ``phases`` may hold a list of mappings with the same keys.
        renamed: old key path to new key path.
        source: the file that `raw` comes from, for errors and for `renamings`.
        renamings: collects what was renamed, for `report`.

    Raises:
        ConfigErrors: if an old and a new name are both set.
    """
    converted: dict[str, Any] = _convert(dict(raw), (), renamed, source, [] if renamings is None else renamings)
    return converted


def convert_paths(
    settings: Mapping[str, Any],
    renamed: Mapping[str, str] = RENAMED,
    *,
    source: str = "",
    renamings: list[Renaming] | None = None,
) -> dict[str, Any]:
    """Like `convert`, for a mapping of key paths to values, as in ``{"optimizer.lr": 0.1}``.

    Raises:
        ConfigErrors: if a key is set under an old and a new name.
    """
    collected: list[Renaming] = [] if renamings is None else renamings
    converted: dict[str, Any] = {}
    for old, value in settings.items():
        path, new_value = convert_setting(tuple(old.split(".")), value, renamed, source=source, renamings=collected)
        new = ".".join(path)
        if new != old and new in settings:
            raise ConfigErrors([_both(old, new, value, source)])
        converted[new] = new_value
    return converted


def convert_setting(
    path: tuple[Any, ...],
    value: Any,
    renamed: Mapping[str, str] = RENAMED,
    *,
    source: str = "",
    renamings: list[Renaming] | None = None,
) -> tuple[tuple[Any, ...], Any]:
    """One setting: the new key path for `path` (keys, and indices of lists), and the value with new keys inside."""
    collected: list[Renaming] = [] if renamings is None else renamings
    new = list(path)
    start = (
        2 if path[0] == "phases" and len(path) > 1 else 0
    )  # phases.0.optimizer.decay is renamed as optimizer.decay is
    for depth in range(start, len(path)):
        old_key = ".".join(map(str, path[start : depth + 1]))
        if old_key in renamed:
            new[depth] = renamed[old_key].rpartition(".")[2]
            value = _new_value(old_key, value) if depth == len(path) - 1 else value
            collected.append(Renaming(old_key, renamed[old_key], source))
    return tuple(new), _convert(value, tuple(map(str, path[start:])), renamed, source, collected)


def report(renamings: Iterable[Renaming]) -> None:
    """Log one warning for each renamed key: once in a process, and on one process of a run only.

    Ranks that `bellwether train` starts log nothing, because the command itself has read the config before.
    """
    if environment_rank() != 0 or "BELLWETHER_WORLD_SIZE" in os.environ:
        return
    for renaming in renamings:
        if renaming.old not in _reported:
            _reported.add(renaming.old)
            where = f"{renaming.source}: " if renaming.source else ""
            _log.warning(
                "%s%s was renamed to %s; the old name works in this version only", where, renaming.old, renaming.new
            )


def _convert(
    value: Any, path: tuple[str, ...], renamed: Mapping[str, str], source: str, renamings: list[Renaming]
) -> Any:
    if path == ("phases",) and isinstance(value, list):
        return [_convert(phase, (), renamed, source, renamings) for phase in value]
    if not isinstance(value, dict):
        return value
    converted = {}
    for key, inner in value.items():
        inner_path = (*path, str(key))
        old = ".".join(inner_path)
        new_key = key
        if old in renamed:
            new_key = renamed[old].rpartition(".")[2]
            renamings.append(Renaming(old, renamed[old], source))
            if new_key in value:
                raise ConfigErrors([_both(old, renamed[old], inner, source)])
            inner = _new_value(old, inner)
        converted[new_key] = _convert(inner, inner_path, renamed, source, renamings)
    return converted


def _new_value(old: str, value: Any) -> Any:
    return VALUES.get(old, {}).get(value, value) if isinstance(value, bool) else value


def _both(old: str, new: str, value: Any, source: str) -> ConfigError:
    return ConfigError(old, value, f"was renamed to {new}, which is set as well", f"remove {old}", source)
