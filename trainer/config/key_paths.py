"""Key paths of nested mappings, such as ``phases[0].batch.global``, and what is found at them."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

KeyPath = tuple[str | int, ...]
Origins = dict[KeyPath, str]  # the file, or COMMAND_LINE, that has set each key
COMMAND_LINE = "command line"


def at(raw: Any, path: KeyPath) -> Any:
    """The value at a key path, or None."""
    for key in path:
        try:
            raw = raw[key]
        except (KeyError, IndexError, TypeError):
            return None
    return raw


def dotted(path: KeyPath) -> str:
    """A key path as text, as in ``phases[0].batch.global``."""
    return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in path).lstrip(".") or "(the file)"


def origin_of(path: KeyPath, origins: Origins, default: str) -> str:
    """The file, or ``command line``, that has set a key or the nearest section around it."""
    for depth in range(len(path), 0, -1):
        if path[:depth] in origins:
            return origins[path[:depth]]
    return default


def leaves(value: Any) -> Iterable[KeyPath]:
    """The key paths of a value, of everything inside it, and of itself, ()."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    yield ()
    for key, inner in items:
        for leaf in leaves(inner):
            yield (key, *leaf)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merges `over` into a copy of `base`. Mappings are merged, unless their `kind` differs; everything else is replaced."""
    result = copy.deepcopy(base)
    for key, value in over.items():
        old = result.get(key)
        same_kind = (
            isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind")
        )
        result[key] = merge(old, value) if same_kind else copy.deepcopy(value)  # type: ignore[arg-type]
    return result
