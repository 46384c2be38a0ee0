"""The registry of built-in datasets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Rows = Callable[[], Any]
Facts = Callable[[], dict[str, Any]]

_REGISTRY: dict[tuple[str, str], Builtin] = {}


@dataclass(frozen=True)
class Builtin:
    """A built-in dataset.

    Attributes:
        name: its name in ``data.source``.
        rows: reads or generates it, as a `datasets.Dataset`.
        facts: what its content depends on, such as the version of a library. Cached preparations are keyed by it.
    """

    name: str
    rows: Rows
    facts: Facts

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Identifies the content."""
        return {"source": self.name, **self.facts()}


def builtin(name: str, kind: str, facts: Facts = dict) -> Callable[[Rows], Rows]:
    """Registers a function as a built-in dataset. The function returns a `datasets.Dataset`.

    Args:
        name: its name in ``data.source``.
        kind: the ``data.kind`` that it is for. Text needs a column ``text``; labelled text ``text`` and ``label``; images need ``image`` (a `datasets.Image`) and
            ``label`` (a `datasets.ClassLabel`).
        facts: see `Builtin`.
    """

    def register(rows: Rows) -> Rows:
        _REGISTRY[kind, name] = Builtin(name, rows, facts)
        return rows

    return register


def find(kind: str, name: str) -> Builtin | None:
    """The built-in dataset of this kind and name, or None."""
    return _REGISTRY.get((kind, name))
