"""The report of a sweep: ``report.html``, its pictures as PNG, and a summary for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bellwether.experiments.analysis import fitting, io
from bellwether.experiments.analysis.aggregate import peak_lr
from bellwether.experiments.report.facts import REPORT, Facts, Series, Throughput
from bellwether.experiments.report.lr_scaling import power
from bellwether.experiments.sweep.study import open_study
from bellwether.trainer import run_paths
from bellwether.trainer.config import ConfigError, ConfigErrors
from bellwether.trainer.report.facts import count, whole
from bellwether.trainer.report.summary import aligned

if TYPE_CHECKING:
    from bellwether.trainer.report.chart import Picture

__all__ = ["load", "summary", "write"]

KIND = "report of a sweep"  #: these words identify a page as one of ours


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
    from bellwether.experiments.report import compare, headlines, tables
    from bellwether.trainer.report.chart import draw
    from bellwether.trainer.report.html import render

    path = Path(path)
    file = path / REPORT if path.is_dir() else path.with_suffix(f".{REPORT}")
    if file.exists() and KIND not in file.read_text(encoding="utf-8", errors="replace")[:20_000]:
        raise ConfigError("PATH", str(path), f"{file} is in the way: it is not the report of a sweep", "move it")
    billed = facts.target is not None and any(facts.bill(cell) for cell in facts.cells)
    page = render(
        "sweep.html", Path(__file__).with_name("templates"), title=facts.name, kind=KIND, about=_about(facts),
        facts=facts, state="nothing run" if not facts.trials else "unfinished" if facts.unfinished else "finished",
        headlines=headlines.results(facts), b_crits=headlines.b_crits(facts),
        drawn=draw(_sections(facts), facts, facts.root / "plots" if path.is_dir() else None),
        fits=tables.fits(facts), fit_notes=[(series.name, note) for series in facts.series for note in series.notes],
        laws=tables.laws(facts),
        law_notes=[(series.name, note) for series in facts.series if series.law for note in series.law.notes],
        bills=tables.bills(facts) if billed else None, sides=tables.sides(facts), settings=tables.settings(facts),
        ranked=compare.table(facts.comparison), rank_notes=facts.comparison.notes if facts.comparison else [],
        trials=tables.trials(facts),
    )  # fmt: skip
    run_paths.publish(file, page)
    return file


def _about(facts: Facts) -> list[str]:
    """The facts in the line below the title; empty ones are left out by the template."""
    workloads = {" on ".join(part for part in (trial.model, trial.dataset) if part) for trial in facts.trials}
    return [
        *sorted(workloads)[:3],
        ", ".join(series.name for series in facts.series),
        f"batch {facts.batches[0]:,} to {facts.batches[-1]:,}" if len(facts.batches) > 1 else "",
        f"target {facts.target}" if facts.target else "",
    ]


def _sections(facts: Facts) -> dict[str, list[Picture[Facts]]]:
    from bellwether.experiments.report import compare, panels, pictures
    from bellwether.trainer.report.chart import Picture

    if not facts.trials:
        return {}
    heat_note = "mean over the seeds; lighter is better, the worse half all dark; the frame marks the best setting"
    rates_note = "lines: power of the batch; bars: what was tried"
    course_note = f"{facts.measure} against samples, a curve for each batch, the middle seed"
    best = [Picture("best", f"Best {facts.measure}", "mean and range over the seeds", pictures.metric)]
    steps = [
        Picture("steps", "Steps to the target", pictures.steps_note(facts), pictures.steps),
        Picture("samples", "Samples to the target", pictures.samples_note(facts), pictures.samples),
    ]
    hours = [Picture("hours", "Time to the target", "median over the seeds, training alone", pictures.hours)]
    cost = [Picture("cost", "Cost of the target", "median over the seeds", pictures.cost)]
    return {
        "target": best if facts.target is None else steps,
        "rates": [Picture("best-lr", "Best learning rate against batch", rates_note, pictures.rates)],
        "bills": [] if facts.target is None else hours if facts.price is None else hours + cost,
        "sides": [],
        "ranked": [Picture("compare", "Share of the races", "won, or lost by at most this factor", compare.picture)],
        "heat": [Picture("heat", f"Best {facts.measure}", heat_note, panels.heat)],
        "courses": [
            Picture(f"course-{index}", series.name, course_note, panels.course(index))
            for index, series in enumerate(facts.series)
        ],
    }  # fmt: skip


def summary(facts: Facts, path: Path) -> str:
    """The best result of each optimizer and its critical batch size, in a few lines for the terminal."""
    runs = (
        f"{len(facts.trials):,} of {count(facts.planned, 'run')}" if facts.to_come else count(len(facts.trials), "run")
    )
    batches = f"{len(facts.batches)} batch{'' if len(facts.batches) == 1 else 'es'}"
    ended = ", ".join(f"{number:,} {verdict}" for verdict, number in facts.verdicts.items())
    rows = [("ended", ended or "nothing run")]
    if facts.target is not None:
        rows.append(("target", str(facts.target)))
        if facts.verdicts.get("ended early"):
            early = f"those that ended early were ended at the sweep's own target, {facts.own}, and do not count"
            rows.append(("note", early))
    for series in facts.series:
        rows.append((series.name, _best(facts, series)))
        if series.fit is not None:
            rows.append(("  B_crit", fitting.b_crit(series.fit, series.largest)))
        if series.law is not None and series.law.exponent is not None:
            error = "" if series.law.error is None else f" ± {series.law.error:.2f}"
            rows.append(("  best lr", f"grows with the batch to the power {power(series.law.exponent)}{error}"))
        rows += [("  note", note) for note in [*series.notes, *(series.law.notes if series.law else [])]]
    rows.append(("report", str(path)))
    return "\n".join([f"{facts.name}: {runs}, {batches}, {count(len(facts.series), 'optimizer')}", *aligned(rows)])


def _best(facts: Facts, series: Series) -> str:
    cell = min(series.cells, key=lambda cell: (cell.best.steps, not cell.best.reached, cell.best.distance))
    best, lr = cell.best, peak_lr(cell.best)
    if not best.valid_runs:
        return cell.shortfall
    at = f"at batch {cell.batch:,}" + (f", lr {lr:.3g}" if lr is not None else "")
    if cell.reached:
        return f"{whole(best.steps)} steps, {whole(best.samples)} samples {at}"
    near = "nothing measured" if cell.best_value is None else f"best {facts.measure} {cell.best_value:.4g} {at}"
    return near if facts.target is None else f"{cell.shortfall}; {near}"
