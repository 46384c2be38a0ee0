"""Reads host files in the syntax of OpenMPI and MPICH: one host a line, with its number of processes."""

from __future__ import annotations

import re
from pathlib import Path

from bellwether.trainer.config import ConfigError

# A name begins with a letter or digit: ssh would parse one with a dash as an option. ``user@host`` is passed to ssh as it is.
_LINE = re.compile(
    r"(?P<host>[A-Za-z0-9_][A-Za-z0-9_.@-]*)"
    r"(?::(?P<mpich>[0-9]+)|\s+slots\s*=\s*(?P<openmpi>[0-9]+)(?:\s+max[-_]slots\s*=\s*[0-9]+)?)?"
)


def hosts(path: str | Path) -> list[tuple[str, int | None]]:
    """The hosts of a file in its order, each with its number of processes, or None where the line has none.

    A line is ``node1``, ``node1 slots=8`` or ``node1:8``; ``#`` begins a comment.

    Raises:
        ConfigError: naming file and line.
    """
    try:
        lines = Path(path).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read: {getattr(error, 'strerror', None) or 'not a text file'}"
        raise ConfigError("--hostfile", str(path), problem, "name a file with one host a line") from None
    slots_by_host: dict[str, int | None] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        source = f"{path}:{number}"
        match = _LINE.fullmatch(text)
        if match is None:
            raise ConfigError("host", text, "cannot be read", "write node1, node1 slots=8 or node1:8", source)
        slots = match["mpich"] or match["openmpi"]
        if slots is not None and int(slots) == 0:
            raise ConfigError("host", text, "has no processes", "write a number from 1 up, or remove the line", source)
        if match["host"] in slots_by_host:
            raise ConfigError(
                "host", text, "appears twice", "write it once, with slots=N for several processes", source
            )
        slots_by_host[match["host"]] = None if slots is None else int(slots)
    if not slots_by_host:
        raise ConfigError("--hostfile", str(path), "has no hosts", "write one host a line")
    return list(slots_by_host.items())
