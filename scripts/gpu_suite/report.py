"""The results of the GPU suite as Markdown and JSON, replaced as a whole after each part."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from scripts.measurements import rounded

RESULTS = ("passed", "failed", "timed out", "no time left")


def outcome(entries: list[dict[str, Any]], status: int | None) -> str:
    """What became of a part: of its checks, and of its process.

    Args:
        status: exit status of the process; None: it was ended at its time limit.

    >>> outcome([{"check": {"what": "a", "passed": True}}], 0), outcome([{"check": {"what": "a", "passed": False}}], 0)
    ('passed', 'failed')
    >>> outcome([], 1), outcome([], None)
    ('failed', 'timed out')
    """
    failed = any("check" in entry and not entry["check"]["passed"] for entry in entries)
    if failed or status not in (0, None):
        return "failed"
    return "timed out" if status is None else "passed"


def write(folder: Path, results: dict[str, Any]) -> None:
    """Write results.json and results.md, each by one rename."""
    for name, text in (("results.json", json.dumps(results, indent=1) + "\n"), ("results.md", markdown(results))):
        scratch = folder / f".{name}.partial"
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, folder / name)


def markdown(results: dict[str, Any]) -> str:
    about = results["about"]
    lines = [f"# GPU suite on {about['device']}{', dry run' if about['dry'] else ''}", ""]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines += [f"{about['measured']}; driver {about['driver']}; {versions}.", ""]
    lines += ["| part | result | seconds |", "| --- | --- | ---: |"]
    lines += [f"| {part['title']} | {part['result']} | {part['seconds']:.0f} |" for part in results["parts"]]
    waiting = results["waiting"]
    if waiting:
        lines += ["", f"Not run yet: {', '.join(waiting)}."]
    for part in results["parts"]:
        lines += ["", f"## {part['title']}", "", *_part(part)]
    return "\n".join(lines) + "\n"


def _part(part: dict[str, Any]) -> list[str]:
    entries = part["entries"]
    lines = []
    checks = [entry["check"] for entry in entries if "check" in entry]
    lines += [
        f"- {'ok' if c['passed'] else 'FAILED'}: {c['what']}{': ' + c['detail'] if c['detail'] else ''}" for c in checks
    ]
    rows = [entry["row"] for entry in entries if "row" in entry]
    for index, row in enumerate(rows):
        if index == 0 or rows[index - 1].keys() != row.keys():
            lines += ["", f"| {' | '.join(row)} |", f"|{' --- |' * len(row)}"]
        lines.append(f"| {' | '.join(_cell(value) for value in row.values())} |")
    notes = [entry["note"] for entry in entries if "note" in entry]
    if notes:
        lines += ["", *(f"- {note}" for note in notes)]
    if part["error"]:
        lines += ["", "```", *part["error"].splitlines()[-25:], "```"]
    return lines or ["Nothing was seen."]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return rounded(value) if isinstance(value, float) else str(value)
