"""The charts against the batch size: functions from facts to a chart, or None if there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from bellwether.experiments.analysis.aggregate import Cell, Setting
from bellwether.experiments.analysis.outcome import Outcome
from bellwether.experiments.report.batch_chart import BatchChart, Miss
from bellwether.experiments.report.facts import Bill, Facts, time_unit
from bellwether.experiments.report.lr_scaling import power
from bellwether.trainer.report.chart import DASHED, DOTTED, HEIGHT, LIGHT, Chart, log_ticks
from bellwether.trainer.report.curves import significant
from bellwether.trainer.report.facts import compact, whole

_FAINT = 600  # more dots of other settings hide what is behind them


def steps_note(facts: Facts) -> str:
    """The caption of `steps`: only what the chart contains."""
    pale = ["pale dots: other settings"] if _pale(facts) else []
    missed = any(cell.missed or len(cell.best.reached) < len(cell.best.valid_runs) for cell in facts.cells)
    end = ["missed: more than the most that was tried"] if missed else []
    return "; ".join(["median and range over the seeds", *pale, *end])


def samples_note(facts: Facts) -> str:
    """The caption of `samples`: only what the chart contains."""
    fits = [series.fit for series in facts.series if series.fit is not None]
    if not fits:
        return "median and range over the seeds"
    band = "; band: 90 %" if any(len(fit.bootstrap) for fit in fits) else ""
    return f"line: samples = S_min (1 + B / B_crit){band}; B_crit takes twice S_min"


def steps(facts: Facts) -> Chart | None:
    """Steps to the target, and the line of perfect scaling: twice the batch size takes half the steps."""
    chart = BatchChart(facts, HEIGHT * 1.15)
    for series, look in chart.series():
        first = next((cell for cell in series.cells if cell.reached), None)
        if first is not None:
            x = np.array([first.batch, facts.batches[-1]], dtype=np.float64)
            y = first.best.steps * first.batch / x
            chart.ax.plot(x, y, color=look.light, linewidth=0.9, linestyle=DASHED, alpha=0.75, zorder=1)
    if not _to_target(chart, lambda run: run.steps, lambda cell: cell.most_steps, line=True, others=_pale(facts)):
        return None
    if any(cell.reached for cell in facts.cells):
        chart.ax.plot([], [], color=LIGHT["muted"], linewidth=0.9, linestyle=DASHED, label="perfect scaling")
    return chart.finish()


def samples(facts: Facts) -> Chart | None:
    """Samples to the target, the fit with its band, and B_crit: flat as long as a larger batch pays."""
    chart = BatchChart(facts, HEIGHT * 1.15)
    ax = chart.ax
    if not _to_target(chart, lambda run: run.samples, lambda cell: cell.most_steps * cell.batch):
        return None
    x = np.geomspace(facts.batches[0], facts.batches[-1], 120)
    ends = ax.get_ylim()
    ax.set_ylim(ends)
    label: str | None = "B_crit"
    for series, look in chart.series():
        fit = series.fit
        if fit is None:
            continue
        ax.plot(x, fit.s_min * (1 + x / fit.b_crit), color=look.light, linewidth=1.7, zorder=3)
        band = fit.band(x)
        if band is not None:
            limits = np.clip(band, ends[0] / 3, ends[1] * 3)
            ax.fill_between(x, *limits, color=look.light, alpha=0.14, linewidth=0, zorder=1)
        if facts.batches[0] <= fit.b_crit <= facts.batches[-1]:
            if band is not None:
                interval = [max(fit.b_crit_low, x[0]), min(fit.b_crit_high, x[-1])]
                ax.plot(interval, [2 * fit.s_min] * 2, color=look.light, linewidth=1.1, zorder=5)
            ax.plot(
                [fit.b_crit], [2 * fit.s_min], "D", color=LIGHT["card"], markeredgecolor=look.light, markersize=6.5,
                zorder=6, label=label,
            )  # fmt: skip
            label = None
    return chart.finish()


def metric(facts: Facts) -> Chart | None:
    """Without a target: the best value of the metric in each cell."""
    if not any(cell.best.mean is not None for cell in facts.cells):
        return None
    chart = BatchChart(facts, log=False)
    for series, look in chart.series():
        points = [(cell, mean) for cell in series.cells if (mean := cell.best.mean) is not None]
        x = [cell.batch * look.shift for cell, _ in points]
        chart.ax.plot(x, [mean for _, mean in points], color=look.light, linewidth=1.5)
        for cell, mean in points:
            chart.bar(look, cell.batch, cell.best.values, zorder=2)
            for run in cell.best.valid_runs:
                if run.best is not None:
                    chart.seed(look, cell.batch, run.best, run)
            chart.median(look, cell.batch, mean, cell.best.median_run)
        chart.key(look, series.name)
        chart.values(series.name, look, points, significant)
    chart.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    chart.legend()
    return chart


def rates(facts: Facts) -> Chart | None:
    """The best learning rates, the power of the batch size fitted to them, and the square-root and linear rules."""
    if not any(series.law for series in facts.series):
        return None
    chart = BatchChart(facts)
    ax = chart.ax
    x = np.array([facts.batches[0], facts.batches[-1]], dtype=np.float64)
    for series, look in chart.series():
        law = series.law
        if law is None:
            continue
        best = [
            (cell, lr) for cell in series.cells for b, lr in zip(law.batches, law.lrs, strict=True) if cell.batch == b
        ]
        for cell, lr in best:
            chart.bar(look, cell.batch, cell.lrs, linewidth=0.8, alpha=0.35, zorder=2)
            ax.plot(
                [cell.batch * look.shift] * len(cell.lrs), cell.lrs, "_", color=look.light, markersize=5, alpha=0.45
            )
            chart.median(look, cell.batch, lr, cell.best.median_run)
        if law.exponent is not None:
            ax.plot(x, [law(v) for v in x], color=look.light, linewidth=1.5)
        chart.key(look, series.name + ("" if law.exponent is None else f", B^{power(law.exponent)}"))
        chart.values(series.name, look, best, significant)
    limits = ax.get_ylim()
    middle = math.exp(np.mean([math.log(lr) for series in facts.series if series.law for lr in series.law.lrs]))
    if x[0] < x[1]:
        for exponent, style, label in ((0.5, DASHED, "square root"), (1.0, DOTTED, "linear")):
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
        points = [
            (cell, value) for cell in series.cells
            if (bill := facts.bill(cell)) and (value := of(bill)) and math.isfinite(value)
        ]  # fmt: skip
        if not points:
            continue
        x = [cell.batch * look.shift for cell, _ in points]
        chart.ax.plot(x, [value for _, value in points], color=look.light, linewidth=1.5)
        for cell, value in points:
            chart.median(look, cell.batch, value, cell.best.median_run)
        chart.key(look, series.name)
        chart.values(series.name, look, points, lambda value: f"{significant(value)}{unit}")
    if not chart.ax.lines:
        return None
    chart.finish()
    chart.ax.yaxis.set_major_formatter(lambda value, _: f"{compact(value)}{unit}")
    return chart


def _to_target(
    chart: BatchChart,
    of: Callable[[Outcome], float],
    tried: Callable[[Cell], float],
    *,
    line: bool = False,
    others: bool = False,
) -> bool:
    """Draw medians, seeds and their range for each cell's best setting; runs that missed are at the top edge.

    Args:
        of: the value of a run.
        tried: the most that was tried in a cell.
        line: join the medians.
        others: draw the other settings too, pale.

    Returns:
        whether there was anything to draw.
    """
    cells = chart.facts.cells
    if not any(cell.reached or (cell.missed and tried(cell) > 0) for cell in cells):
        return False
    missed: list[Miss] = []
    for series, look in chart.series():
        medians = [
            (cell, float(np.median([of(run) for run in cell.best.valid_runs]))) for cell in series.cells if cell.reached
        ]
        if line:
            x = [cell.batch * look.shift for cell, _ in medians]
            chart.ax.plot(x, [y for _, y in medians], color=look.light, linewidth=1.7)
        if others:
            dots = [
                (cell.batch * look.shift, float(np.median([of(run) for run in setting.valid_runs])))
                for cell in series.cells for setting in _others(cell)
            ]  # fmt: skip
            chart.ax.plot(*np.reshape(dots, (-1, 2)).T, ".", color=look.light, markersize=5, alpha=0.3, zorder=1)
        for cell, y in medians:
            chart.median(look, cell.batch, y, cell.best.median_run)
            missed += [Miss(cell.batch * look.shift, 0.0, look, r) for r in cell.best.valid_runs if math.isinf(r.steps)]
        for cell in series.cells:
            if cell.best.reached:
                chart.bar(look, cell.batch, [of(run) for run in cell.best.reached])
            for run in cell.best.reached:
                chart.seed(look, cell.batch, of(run), run)
            if cell.missed:
                missed.append(Miss(cell.batch * look.shift, tried(cell), look, cell.best.median_run))
        chart.key(look, series.name)
        chart.values(series.name, look, medians, whole)
    if others:
        chart.ax.plot([], [], ".", color=LIGHT["muted"], markersize=5, alpha=0.5, label="other settings")
    chart.misses(missed)
    return True


def _others(cell: Cell) -> list[Setting]:
    """The settings other than the best one that reached the target too."""
    return [setting for setting in cell.settings[1:] if math.isfinite(setting.steps)]


def _pale(facts: Facts) -> bool:
    """Whether there are other settings to show, and not too many."""
    return 0 < sum(len(_others(cell)) for cell in facts.cells) <= _FAINT
