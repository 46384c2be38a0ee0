"""Steps that a killed launch has logged and that are trained again: their lines move to ``<run>/logs/abandoned.jsonl``.

Readers of metrics.jsonl then find each step once. What was set aside is kept for the account of the run's time
(`bellwether.trainer.goodput`): these steps were lost.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from bellwether.trainer import metrics_format, run_paths
from bellwether.trainer.metrics_format import Line

FILE = Path("logs", "abandoned.jsonl")


def set_aside(run: Path, step: int) -> list[Line]:
    """Move the lines of steps beyond `step` from metrics.jsonl to the end of abandoned.jsonl. Returns what it moved.

    There each line has ``launch`` besides, the number of ``start`` lines before that of its launch. A kill in between leaves the
    lines in both files: `read` returns them once, and the next launch moves them again. Versions before 2026-11-30 left all
    lines in metrics.jsonl: those of earlier restarts move as well.

    Raises:
        OSError: if it cannot write. metrics.jsonl is unchanged then.
    """
    file = run / metrics_format.FILE
    kept: list[tuple[bytes, Line | None, int]] = []
    moved: list[tuple[bytes, Line, int]] = []

    def rewind(to: int) -> None:
        nonlocal kept
        remaining: list[tuple[bytes, Line | None, int]] = []
        for raw, line, launch in kept:
            if line is not None and line["event"] in metrics_format.OF_STEPS and line["step"] > to:
                moved.append((raw, line, launch))
            else:
                remaining.append((raw, line, launch))
        kept = remaining

    launch = -1
    for raw in file.read_bytes().splitlines(keepends=True):
        line = metrics_format.parse(raw)
        if line is not None and line["event"] == "start":
            launch += 1
            rewind(int(line["step"]))
        kept.append((raw, line, launch))
    rewind(step)
    if moved:
        aside = run / FILE
        aside.parent.mkdir(exist_ok=True)
        with open(aside, "ab") as stream:
            for raw, _, launch in moved:
                stream.write(json.dumps({**json.loads(raw), "launch": launch}, ensure_ascii=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        with run_paths.replacing(file) as partial:
            partial.write_bytes(b"".join(raw for raw, _, _ in kept))
    return [line for _, line, _ in moved]


def read(run: Path) -> list[Line]:
    """The lines that were set aside, in the order in which they were written, each once."""
    try:
        raws = dict.fromkeys((run / FILE).read_bytes().splitlines())
    except FileNotFoundError:
        return []
    lines = (metrics_format.parse(raw) for raw in raws)
    return [line for line in lines if line is not None and isinstance(line.get("launch"), int)]
