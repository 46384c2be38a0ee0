"""Short parameter names, in groups that follow the model's blocks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

# encoder.layer.3.attention... and stages.0.layers.1.shortcut...: the first number, and the next one after a plural.
_BLOCK = re.compile(r"^(?:.*?\.)?(\w+?)s?\.(\d+)\.(?:(\w+)s\.(\d+)\.)?(.+)$")


@dataclass(frozen=True)
class Name:
    """One parameter: the block that it is in, and its name inside the block."""

    full: str
    group: str
    short: str


def shorten(names: Iterable[str]) -> list[Name]:
    """Short names in the same order.

    >>> [(n.group, n.short) for n in shorten(["bert.embeddings.word_embeddings.weight",
    ...     "bert.encoder.layer.0.attention.self.query.weight", "bert.encoder.layer.0.output.dense.weight"])]
    [('embeddings', 'word_embeddings'), ('layer 0', 'attention.self.query'), ('layer 0', 'output.dense')]
    """
    full = list(names)
    wrappers = _wrappers(full)
    found = []
    for name in full:
        # Nearly everything with a trust ratio is a weight, so only other kinds keep their suffix.
        path = name.removesuffix(".weight")
        match = _BLOCK.match(path)
        if match:
            group = " ".join(part for part in match.groups()[:4] if part)
            found.append(Name(name, group, match[5]))
        else:
            for wrapper in wrappers:
                if not path.startswith(f"{wrapper}."):
                    break
                path = path.removeprefix(f"{wrapper}.")
            group, _, rest = path.partition(".")
            found.append(Name(name, group, rest or group))
    return found


def _wrappers(names: list[str]) -> list[str]:
    """The leading parts that nearly all names share, as "model" and "bert" of "model.bert."."""
    wrappers: list[str] = []
    rests = [name.split(".") for name in names]
    while True:
        heads = Counter(rest[0] for rest in rests if len(rest) > 2)
        head, count = max(heads.items(), key=lambda item: item[1], default=("", 0))
        if count <= 0.7 * len(names) or head.isdigit():
            return wrappers
        wrappers.append(head)
        rests = [rest[1:] for rest in rests if rest[0] == head]


def runs(groups: Iterable[str]) -> list[tuple[str, int, int]]:
    """Neighbours of the same group: (group, first row, row after the last)."""
    found, row = [], 0
    for group, rows in groupby(groups):
        begin, row = row, row + len(list(rows))
        found.append((group, begin, row))
    return found
