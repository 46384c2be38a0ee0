"""Prints the doctor's table: plain text from 80 columns up, colours on a terminal only."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from bellwether.launcher.doctor.result import GREEN, RED, YELLOW, Row

_COLOURS = {GREEN: "\033[32m", YELLOW: "\033[33m", RED: "\033[31m"}
_STATE, _CHECK = 8, 12  # widths of the first two columns


def render(rows: Sequence[Row], width: int = 80, colour: bool = False) -> str:
    """One line a row, and below each row that is not green its fix."""
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


def exit_status(rows: Sequence[Row]) -> int:
    """The exit status for the shell: 1 when a row is red, else 0."""
    return int(any(row.state == RED for row in rows))


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    # Paths are not broken where they fit: people copy them.
    available = max(20, width - _STATE - _CHECK)
    return textwrap.wrap(text, available, subsequent_indent=indent, break_on_hyphens=False) or [""]
