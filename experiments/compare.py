"""`bellwether compare`: the optimizers of one or several sweeps, ranked by the time to the target."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from bellwether.experiments import report
from bellwether.experiments.analysis import io
from bellwether.experiments.analysis.aggregate import Cell
from bellwether.experiments.analysis.comparison import LEVEL, Comparison, Time, compare
from bellwether.experiments.analysis.outcome import Outcome
from bellwether.experiments.report.compare import COLUMNS, draw
from bellwether.experiments.report.facts import Facts
from bellwether.trainer.config import ConfigError
from bellwether.trainer.report.chart import png, style
from bellwether.trainer.report.summary import aligned

PICTURE = "compare.png"
By = Literal["steps", "seconds"]


def time_of(facts: Facts, by: By) -> Time:
    """How long a run took: its steps to the target, or its samples to the target at the throughput that it measured."""

    def seconds(run: Outcome) -> float:
        if math.isinf(run.samples):
            return math.inf
        speed = facts.throughput.of(run.trial)
        if speed is None:
            raise ConfigError(
                "--by", by, f"{run.trial.run or run.trial.trial} measured no throughput", "write --by steps"
            )
        return run.samples / speed

    return seconds if by == "seconds" else lambda run: run.steps


def show(paths: Sequence[str], target: str | None, by: By, output: str | None, as_json: bool) -> int:
    """Print the comparison of the optimizers of sweeps, and draw it.

    Raises:
        ConfigError: if a sweep cannot be read, has no target, or there is nothing to compare.
    """
    if output is not None and Path(output).suffix.lower() != ".png":
        raise ConfigError("--output", output, "does not end in .png, and is a picture", f"write {PICTURE}")
    cells: dict[str, Sequence[Cell]] = {}
    time: dict[int, float] = {}
    for each in map(Path, paths):
        facts = report.load(each, target=target)
        if facts.target is None:
            raise ConfigError("--target", None, f"{each} has no target", "write --target 'accuracy >= 0.9'")
        io.check_measured(facts.target, facts.trials)
        name = facts.name if facts.name not in cells else str(each)
        cells[name], own = facts.cells, time_of(facts, by)
        time |= {id(run): own(run) for cell in facts.cells for run in cell.best.valid_runs}
    found = compare(cells, lambda run: time[id(run)])
    if found is None:
        raise ConfigError("PATH", ", ".join(paths), "no two optimizers have run on the same batch size and seed")
    path = Path(output) if output is not None else _beside(Path(paths[0]))
    with style():
        png(draw(found, by).figure, path)
    if as_json:
        print(json.dumps({**_plain(found), "by": by, "level": LEVEL, "picture": str(path)}, indent=1))
    else:
        print(text(found, by, path))
    return 0


def _beside(path: Path) -> Path:
    return path / PICTURE if path.is_dir() else path.with_suffix(f".{PICTURE}")


def text(found: Comparison, by: By, path: Path) -> str:
    """The table for the terminal."""
    batches = len({(race.workload, race.batch) for race in found.races})
    head = f"{len(found.races)} races ({batches} batch sizes), by {by} to the target; places hold for all together at {LEVEL:.0%}"
    rows = [["", *(label for label, _, _ in COLUMNS[1:])]]
    rows += [[cell(standing) for _, _, cell in COLUMNS] for standing in found.standings]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]) for row in rows
    ]  # fmt: skip
    rest = [
        *(("beyond chance", line) for line in _certain(found) or ["nothing"]),
        *(("note", note) for note in found.notes),
        ("picture", str(path)),
    ]
    return "\n".join([head, *lines, "", *aligned(rest)])


def _certain(found: Comparison) -> list[str]:
    """For each optimizer the others that it is faster than beyond chance, the first one first."""
    lines = []
    for name in (standing.name for standing in found.standings):
        won = {pair.second if pair.first == name else pair.first: pair.p for pair in found.pairs if pair.winner == name}
        if won:
            lines.append(f"{name} before {', '.join(won)} (p up to {max(won.values()):.2g})")
    return lines


def _plain(found: Comparison) -> dict[str, Any]:
    """For JSON, which has no infinity: null for what was missed."""
    raw = asdict(found)
    for each in [*raw["standings"], *raw["pairs"]]:
        each["ratio"] = each["ratio"] if math.isfinite(each["ratio"]) else None
    for race in raw["races"]:
        race["times"] = {name: time if math.isfinite(time) else None for name, time in race["times"].items()}
    return raw
