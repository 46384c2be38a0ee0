"""The part of a results page that a script measures and writes; the rest of the page is written by hand."""

from __future__ import annotations

import subprocess
from datetime import date
from pathlib import Path


def measured() -> str:
    """Date and commit of a measurement, as in ``2026-11-30, commit abc1234``."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{date.today()}, commit {head.stdout.strip() or 'unknown'}"


def write(page: str | Path | None, begin: str, end: str, text: str) -> None:
    """Replace what a page has between two markers, which are comments; add it at the end where it has none.

    Args:
        page: the page; None: print the text.
    """
    if page is None:
        print(text)
        return
    before, _, rest = Path(page).read_text(encoding="utf-8").partition(begin)
    Path(page).write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")
