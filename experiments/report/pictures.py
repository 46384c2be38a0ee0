"""The charts against the batch size: functions from facts to a chart, or None if there is nothing to draw."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np

from bellwether.experiments.analysis.aggregate import Cell, Setting
from bellwether.experiments.analysis.outcome import Outcome
from bellwether.experiments.report.batch_chart import BatchChart, Mark
from bellwether.experiments.report.facts import Bill, Facts, time_unit
from bellwether.experiments.report.lr_scaling import power
from bellwether.trainer.report.chart import HEIGHT, LIGHT, Chart, log_ticks
from bellwether.trainer.report.facts import compact, significant, whole

_FAINT = 600  # more dots of other settings hide what is behind them


def steps_note(facts: Facts) -> str:
    """The caption of `steps`: only what the chart contains."""
    pale = "; pale dots: other settings" if _pale(facts) else ""
    missed = any(cell.missed or len(cell.best.reached) < len(cell.best.valid_runs) for cell in facts.cells)
    return f"median and range over the seeds{pale}{'; missed: more than the most that was tried' if missed else ''}"


def samples_note(facts: Facts) -> str:
    """The caption of `samples`: only what the chart contains."""
    fits = [series.fit for series in facts.series if series.fit is not None]
    if not fits:
        return "median and range over the seeds"
    band = "; band: 90 %" if any(len(fit.draws) for fit in fits) else ""
    width = any(fit.used is not None and fit.used.width.any() for fit in fits)
    between = ", between the evaluation that reached the target and the one before" if width else ""
    return f"line: fitted curve{between}{band}; B_crit takes twice the samples of a small batch"


def steps(facts: Facts) -> Chart | None:
    """Steps to the target, and the line of perfect scaling: twice the batch size takes half the steps."""
    chart = BatchChart(facts, HEIGHT * 1.15)
    perfect = {"linewidth": 0.9, "linestyle": "--"}
    for series, look in chart.series():
        first = next((cell for cell in series.cells if cell.reached), None)
        if first is not None:
            x = np.array([first.batch, facts.batches[-1]])
            chart.ax.plot(x, first.best.samples / x, color=look.light, alpha=0.75, zorder=1, **perfect)
        if _pale(facts):
            others = [(cell.batch * look.shift, setting.steps) for cell in series.cells for setting in _others(cell)]
            chart.ax.plot(*np.reshape(others, (-1, 2)).T, ".", color=look.light, alpha=0.3, zorder=1)
    if not _to_target(chart, lambda run: run.steps, lambda cell: cell.most_steps, line=True):
        return None
    if _pale(facts):
        chart.ax.plot([], [], ".", color=LIGHT["muted"], alpha=0.5, label="other settings")
    if any(cell.reached for cell in facts.cells):
        chart.ax.plot([], [], color=LIGHT["muted"], label="perfect scaling", **perfect)
    return chart.finish()


def samples(facts: Facts) -> Chart | None:
    """Samples to the target, the fit with its band, and B_crit: flat as long as a larger batch pays."""
    chart = BatchChart(facts, HEIGHT * 1.15)
    ax = chart.ax
    if not _to_target(chart, lambda run: run.samples, lambda cell: cell.most_steps * cell.batch, line=False):
        return None
    x = np.geomspace(facts.batches[0], facts.batches[-1], 120)
    low, high = ax.get_ylim()
    label: str | None = "B_crit"
    for series, look in chart.series():
        fit = series.fit
        if fit is None:
            continue
        ax.plot(x, fit.curve(x), color=look.light, zorder=3)
        band = fit.band(x)
        if band is not None:
            ax.fill_between(x, *np.clip(band, low / 3, high * 3), color=look.light, alpha=0.14, linewidth=0, zorder=1)
        if x[0] <= fit.b_crit <= x[-1]:
            if band is not None:
                interval = [max(fit.b_crit_low, x[0]), min(fit.b_crit_high, x[-1])]
                ax.plot(interval, [2 * fit.s_min] * 2, color=look.light, linewidth=1.1, zorder=5)
            ax.plot(
                fit.b_crit, 2 * fit.s_min, "D", color=LIGHT["card"], markeredgecolor=look.light, markersize=6.5,
                zorder=6, label=label,
            )  # fmt: skip
            label = None
    ax.set_ylim(low, high)
    return chart.finish()


def metric(facts: Facts) -> Chart | None:
    """Without a target: the best value of the metric in each cell."""
    if not any(cell.best.values for cell in facts.cells):
        return None
    chart = BatchChart(facts, log=False)
    for series, look in chart.series():
        chart.curve(look, [(c, c.best.mean) for c in series.cells if c.best.mean is not None], significant)
        runs = [(cell, run) for cell in series.cells for run in cell.best.valid_runs]
        chart.seeds(look, [(cell, run.best, run) for cell, run in runs if run.best is not None])
    chart.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    chart.legend()
    return chart


def rates(facts: Facts) -> Chart | None:
    """The best learning rates, the power of the batch size fitted to them, and the square-root and linear rules."""
    laws = [series.law for series in facts.series if series.law]
    if not laws:
        return None
    chart = BatchChart(facts)
    ax = chart.ax
    x = np.array([facts.batches[0], facts.batches[-1]], dtype=np.float64)
    for series, look in chart.series():
        law = series.law
        if law is None:
            continue
        best = [(cell, lr) for cell in series.cells if (lr := law.lrs.get(cell.batch)) is not None]
        for cell, _ in best:
            tried = [cell.batch * look.shift] * len(cell.lrs)
            ax.plot(tried, cell.lrs, color=look.light, linewidth=0.8, alpha=0.4, marker="_", zorder=2)
        note = "" if law.exponent is None else f", B^{power(law.exponent)}"
        chart.curve(look, best, significant, line=False, note=note)
        if law.exponent is not None:
            ax.plot(x, law(x), color=look.light)
    limits = ax.get_ylim()
    middle = statistics.geometric_mean(lr for law in laws for lr in law.lrs.values())
    if x[0] < x[1]:
        for exponent, style, label in ((0.5, "--", "square root"), (1.0, ":", "linear")):
            y = middle * (x / math.sqrt(x[0] * x[1])) ** exponent
            ax.plot(x, y, color=LIGHT["muted"], linewidth=1.0, linestyle=style, label=label)
    ax.set_ylim(limits)
    log_ticks(ax.yaxis, *limits)
    chart.legend()
    return chart


def hours(facts: Facts) -> Chart | None:
    """Wall time to the target, in the unit that suits the shortest."""
    bills = [bill.hours for cell in facts.cells if (bill := facts.bill(cell)) and math.isfinite(bill.hours)]
    length, unit = time_unit(min(bills, default=1.0))
    return _billed(facts, lambda bill: bill.hours / length, f" {unit}")


def cost(facts: Facts) -> Chart | None:
    """The cost of reaching the target."""
    return _billed(facts, lambda bill: bill.cost)


def _billed(facts: Facts, of: Callable[[Bill], float | None], unit: str = "") -> Chart | None:
    chart = BatchChart(facts)
    for series, look in chart.series():
        bills = [(cell, bill) for cell in series.cells if (bill := facts.bill(cell)) and math.isfinite(bill.hours)]
        points = [(cell, value) for cell, bill in bills if (value := of(bill))]
        if points:
            chart.curve(look, points, lambda value: f"{significant(value)}{unit}")
    if not chart.ax.lines:
        return None
    chart.finish()
    chart.ax.yaxis.set_major_formatter(lambda value, _: f"{compact(value)}{unit}")
    return chart


def _to_target(
    chart: BatchChart, of: Callable[[Outcome], float], tried: Callable[[Cell], float], *, line: bool
) -> bool:
    """Draw medians, seeds and their range for each cell's best setting; runs that missed are at the top edge.

    Args:
        of: the value of a run.
        tried: the most that was tried in a cell.
        line: join the medians.

    Returns:
        whether there was anything to draw.
    """
    cells = chart.facts.cells
    if not any(cell.reached or (cell.missed and tried(cell) > 0) for cell in cells):
        return False
    missed: tuple[list[Mark], list[Mark]] = [], []
    for series, look in chart.series():
        reached = [cell for cell in series.cells if cell.reached]
        medians = [(cell, statistics.median(map(of, cell.best.valid_runs))) for cell in reached]
        chart.curve(look, medians, whole, line=line)
        chart.seeds(look, [(cell, of(run), run) for cell in series.cells for run in cell.best.reached])
        for cell in series.cells:
            x = cell.batch * look.shift
            if cell.missed:
                missed[0].append(Mark(x, tried(cell), cell.best.median_run, look.light))
            elif cell.reached:
                missed[1].extend(Mark(x, 0, run, look.light) for run in cell.best.valid_runs if math.isinf(run.steps))
    chart.misses(*missed)
    return True


def _others(cell: Cell) -> list[Setting]:
    """The settings other than the best one that reached the target too."""
    return [setting for setting in cell.settings[1:] if math.isfinite(setting.steps)]


def _pale(facts: Facts) -> bool:
    """Whether there are other settings to show, and not too many."""
    return 0 < sum(len(_others(cell)) for cell in facts.cells) <= _FAINT
