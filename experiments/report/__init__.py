"""The report of a sweep: ``report.html``, its pictures as PNG, and a summary for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bellwether.experiments.analysis import fitting, io
from bellwether.experiments.analysis.aggregate import peak_lr
from bellwether.experiments.report.facts import REPORT, Facts, Throughput
from bellwether.experiments.report.lr_scaling import power
from bellwether.experiments.sweep.study import open_study
from bellwether.trainer import run_paths
from bellwether.trainer.config import ConfigError, ConfigErrors
from bellwether.trainer.report.facts import count, whole

if TYPE_CHECKING:
    from bellwether.trainer.report.chart import Picture

__all__ = ["load", "summary", "write"]

PLOTS = "plots"


def load(
    path: Path,
    target: str | None = None,
    price: float | None = None,
    throughput: Mapping[int, float] | float | None = None,
) -> Facts:
    """Read the measurements of a sweep, and its settings.

    Args:
        path: a directory or a table, see `bellwether.experiments.analysis.io.read`.
        target: as in ``val/accuracy >= 0.9``; None: the one in ``sweep.yaml``.
        price: of an hour of one process; None: the one in ``sweep.yaml``.
        throughput: samples per second of one process, by batch size or for all; None: as the runs measured it.

    Raises:
        ConfigError: if something cannot be read.
    """
    root = path if path.is_dir() else path.parent
    trials = io.read(path, "PATH")
    found = io.settings(root)
    if price is None:
        price = found.get("price")
        if price is not None and (isinstance(price, bool) or not isinstance(price, int | float) or not price >= 0):
            raise ConfigError(f"{io.SWEEP}: price", price, "must be a number from 0 up")
    name = str(found.get("name") or (root.resolve().name if path.is_dir() else path.stem))
    goal, own = io.target(target, found), io.early_stop(found)
    to_come = _to_come(path) if path.is_dir() and "batches" in found else 0
    return Facts(name, root, trials, goal, price, Throughput(throughput), io.default_metric(found), own, to_come)


def _to_come(path: Path) -> int:
    """The number of planned runs that have not begun; 0 if the directory holds a table without its runs."""
    try:
        study = open_study(path)
    except ConfigErrors:  # an incomplete sweep.yaml
        return 0
    return study.not_started if any(study.trials_dir.glob("*.yaml")) else 0


def write_runs(facts: Facts) -> int:
    """Write the reports of the runs that have none yet, which takes seconds each; returns their number."""
    from bellwether.trainer import report

    runs = [facts.root / trial.run for trial in facts.trials if trial.run]
    lacking = [run for run in runs if (run / "config.yaml").is_file() and not (run / REPORT).exists()]
    for run in lacking:
        report.write(run)
    return len(lacking)


def write(path: str | Path, facts: Facts) -> Path:
    """Write ``report.html`` and ``plots/*.png`` in a directory, or ``NAME.report.html`` next to a table.

    The page is one file that refers to the reports of the runs and to nothing else.

    Returns:
        the path of the report.

    Raises:
        ConfigError: if a file of that name exists that is not a sweep's report.
    """
    from bellwether.experiments.report.page import KIND, page
    from bellwether.trainer.report.chart import draw, style

    path = Path(path)
    file = path / REPORT if path.is_dir() else path.with_suffix(f".{REPORT}")
    if file.exists() and KIND not in file.read_text(encoding="utf-8", errors="replace")[:20_000]:
        raise ConfigError("PATH", str(path), f"{file} is in the way: it is not the report of a sweep", "move it")
    plots = facts.root / PLOTS if path.is_dir() else None
    if plots is not None:
        plots.mkdir(exist_ok=True)
    with style():
        drawn = {
            key: [draw(picture, facts, plots) for picture in pictures] for key, pictures in _sections(facts).items()
        }
    run_paths.publish(file, page(facts, drawn))
    return file


def _sections(facts: Facts) -> dict[str, list[Picture[Facts]]]:
    from bellwether.experiments.report import panels, pictures
    from bellwether.trainer.report.chart import Picture

    if not facts.trials:
        return {}
    heat_note = "mean over the seeds; lighter is better, the worse half all dark; the frame marks the best setting"
    course_note = f"{facts.measure} against samples, a curve for each batch, the middle seed"
    found = {
        "target": [Picture("best", f"Best {facts.measure}", "mean and range over the seeds", pictures.metric)],
        "rates": [Picture("best-lr", "Best learning rate against batch", "lines: power of the batch; bars: what was tried", pictures.rates)],
        "heat": [Picture("heat", f"Best {facts.measure}", heat_note, panels.heat)],
        "courses": [
            Picture(f"course-{index}", series.name, course_note, panels.course(index))
            for index, series in enumerate(facts.series)
        ],
    }  # fmt: skip
    if facts.target is None:
        return found
    found["target"] = [
        Picture("steps", "Steps to the target", pictures.steps_note(facts), pictures.steps),
        Picture("samples", "Samples to the target", pictures.samples_note(facts), pictures.samples),
    ]
    found["bills"] = [Picture("hours", "Time to the target", "median over the seeds, training alone", pictures.hours)]
    if facts.price is not None:
        found["bills"].append(Picture("cost", "Cost of the target", "median over the seeds", pictures.cost))
    return found


def summary(facts: Facts, path: Path) -> str:
    """The best result of each optimizer and its critical batch size, in a few lines for the terminal."""
    sizes = [
        count(len(facts.trials), "run"),
        f"{len(facts.batches)} batch{'' if len(facts.batches) == 1 else 'es'}",
        count(len(facts.series), "optimizer"),
    ]
    if facts.to_come:
        sizes[0] = f"{len(facts.trials):,} of {count(facts.planned, 'run')}"
    rows = [
        ("ended", ", ".join(f"{number:,} {verdict}" for verdict, number in facts.verdicts.items()) or "nothing run")
    ]
    if facts.target is not None:
        rows.append(("target", str(facts.target)))
        if facts.verdicts.get("ended early"):
            rows.append(
                ("note", f"those that ended early were ended at the sweep's own target, {facts.own}, and do not count")
            )
    for series in facts.series:
        rows += [(series.name, _best(facts, series.name))]
        if series.fit is not None:
            largest = max(cell.batch for cell in series.cells if cell.reached)
            rows.append(("  B_crit", fitting.b_crit(series.fit, largest)))
        if series.law is not None and series.law.exponent is not None:
            error = "" if series.law.error is None else f" ± {series.law.error:.2f}"
            rows.append(("  best lr", f"grows with the batch to the power {power(series.law.exponent)}{error}"))
        rows += [("  note", note) for note in [*series.notes, *(series.law.notes if series.law else [])]]
    rows.append(("report", str(path)))
    width = max(len(label) for label, _ in rows)
    return "\n".join([f"{facts.name}: {', '.join(sizes)}", *(f"  {label:<{width}}  {text}" for label, text in rows)])


def _best(facts: Facts, name: str) -> str:
    found = [cell for cell in facts.cells if cell.optimizer == name]
    best = min(found, key=lambda cell: (cell.best.steps, not cell.best.reached, cell.best.distance))
    if not best.best.valid_runs:
        return best.shortfall
    lr = peak_lr(best.best)
    at = f"at batch {best.batch:,}" + (f", lr {lr:.3g}" if lr is not None else "")
    if math.isfinite(best.best.steps):
        return f"{whole(best.best.steps)} steps, {whole(best.best.samples)} samples {at}"
    near = "nothing measured" if best.best_value is None else f"best {facts.measure} {best.best_value:.4g} {at}"
    return near if facts.target is None else f"{best.shortfall}; {near}"
