"""A row of the doctor's table, what it is held against, and the words that all checks share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Facts = Mapping[str, Any]

GREEN, YELLOW, RED = "green", "yellow", "red"


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    check: str
    state: str  # green, yellow, red
    seen: str
    do: str = ""  # what to do about it


@dataclass(frozen=True)
class Asked:
    """What was asked of whom, to hold the answers against."""

    size: int = 1
    on: str = "local"
    names: Sequence[str] = ()  # of the nodes by rank, as far as they are known beforehand
    gpus: int | None = None  # a node
    bounds: Mapping[str, str] = field(default_factory=dict)  # least versions: {"torch": "2.6"}
    noise: Sequence[tuple[str, str]] = ()  # (who, last words) of launchers and hosts


def few(items: Iterable[str]) -> str:
    """Up to four of them, and how many more.

    >>> few(["a", "b"]), few("abcdefg")
    ('a, b', 'a, b, c, d and 3 more')
    """
    listed = list(items)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


def hosts_of(nodes: Sequence[Facts]) -> list[str]:
    return [node["host"] for node in nodes]


def names_by_rank(nodes: Sequence[Facts], asked: Asked) -> dict[int, str]:
    """Each rank's node: what it calls itself, or else what it was called beforehand."""
    return {**dict(enumerate(asked.names)), **{node["rank"]: node["host"] for node in nodes}}


def by(nodes: Iterable[Facts], key: Callable[[Any], Any]) -> dict[Any, list[str]]:
    """Hosts by what they have in common."""
    groups: dict[Any, list[str]] = {}
    for node in nodes:
        groups.setdefault(key(node), []).append(node["host"])
    return groups


def listed(groups: Mapping[Any, list[str]], all_of: int = 0) -> str:
    """``2.7.0 on node1; 2.6.0 on node2``; without the names where all have the same."""
    if len(groups) == 1 and len(next(iter(groups.values()))) == all_of:
        return str(next(iter(groups)))
    return "; ".join(f"{value} on {few(hosts)}" for value, hosts in list(groups.items())[:4])
