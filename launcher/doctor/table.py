"""The doctor's table: plain text in 80 columns or more, colours on a terminal alone."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from bellwether.launcher.doctor.result import GREEN, RED, YELLOW, Row

_COLOURS = {GREEN: "\033[32m", YELLOW: "\033[33m", RED: "\033[31m"}
_STATE, _CHECK = 8, 12  # widths of the first two columns


def render(rows: Sequence[Row], width: int = 80, colour: bool = False) -> str:
    """A line a row; below one that is not green, what to do."""
    lines = []
    for row in rows:
        state = f"{row.state:<{_STATE}}"
        if colour:
            state = f"{_COLOURS[row.state]}{state}\033[0m"
        seen = _wrap(row.seen, width)
        lines.append(f"{state}{row.check:<{_CHECK}}{seen[0]}")
        lines += [" " * (_STATE + _CHECK) + line for line in seen[1:]]
        lines += [" " * (_STATE + _CHECK) + line for line in (_wrap(f"-> {row.do}", width, "   ") if row.do else [])]
    counts = [f"{sum(row.state == state for row in rows)} {state}" for state in (GREEN, YELLOW, RED)]
    return "\n".join([*lines, ", ".join(counts)]) + "\n"


def status(rows: Sequence[Row]) -> int:
    """For the shell: 1 when a row is red, else 0."""
    return int(any(row.state == RED for row in rows))


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    # Paths are kept whole where they fit: people copy them.
    room = max(20, width - _STATE - _CHECK)
    return textwrap.wrap(text, room, subsequent_indent=indent, break_on_hyphens=False) or [""]
