"""A dictionary that keeps the most recently used entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


@dataclass
class Recent(Generic[K, V]):
    """At most ``size`` entries. Ranks that ask for the same keys in the same order keep the same ones."""

    size: int
    _entries: dict[K, V] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def clear(self) -> None:
        self._entries.clear()

    def __getitem__(self, key: K) -> V:
        self._entries[key] = value = self._entries.pop(key)  # the most recently used is last
        return value

    def __setitem__(self, key: K, value: V) -> None:
        self._entries[key] = value
        if len(self._entries) > self.size:
            del self._entries[next(iter(self._entries))]

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The entry of a key, which is made if there is none."""
        if key not in self:
            self[key] = make()
        return self[key]
