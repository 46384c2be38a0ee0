"""A row of the doctor's table, the expected answers, and helpers to format lists of hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Facts = Mapping[str, Any]

GREEN, YELLOW, RED = "green", "yellow", "red"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    check: str
    state: str  # green, yellow, red
    seen: str
    do: str = ""  # the fix, where the state is not green


@dataclass(frozen=True)
class Expected:
    """The expected answers, and the output of the launchers."""

    size: int = 1  # nodes
    on: str = "local"
    names: Sequence[str] = ()  # of the nodes by rank, as far as they are known beforehand
    gpus: int | None = None  # a node
    bounds: Mapping[str, str] = field(default_factory=dict)  # minimum versions: {"torch": "2.6"}
    launcher_errors: Sequence[tuple[str, str]] = ()  # (launcher or host, end of its standard error)


def few(items: Iterable[str]) -> str:
    """Up to four items, and how many more there are.

    >>> few(["a", "b"]), few("abcdefg")
    ('a, b', 'a, b, c, d and 3 more')
    """
    listed = list(items)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


def hosts_of(nodes: Sequence[Facts]) -> list[str]:
    return [node["host"] for node in nodes]


def names_by_rank(nodes: Sequence[Facts], expected: Expected) -> dict[int, str]:
    """Each rank's host name: the one it reported, otherwise the one known beforehand."""
    return {**dict(enumerate(expected.names)), **{node["rank"]: node["host"] for node in nodes}}


def hosts_by(nodes: Iterable[Facts], key: Callable[[Any], Any]) -> dict[Any, list[str]]:
    """Hosts grouped by the value of ``key``."""
    groups: dict[Any, list[str]] = {}
    for node in nodes:
        groups.setdefault(key(node), []).append(node["host"])
    return groups


def listed(groups: Mapping[Any, list[str]], all_of: int = 0) -> str:
    """``2.7.0 on node1; 2.6.0 on node2``; without the names where all ``all_of`` hosts have the same value."""
    if len(groups) == 1 and len(next(iter(groups.values()))) == all_of:
        return str(next(iter(groups)))
    return "; ".join(f"{value} on {few(hosts)}" for value, hosts in list(groups.items())[:4])
