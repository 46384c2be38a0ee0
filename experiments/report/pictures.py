"""The curves against the batch: functions from facts to a figure, or None where there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bellwether.experiments.analysis.aggregate import Cell, Setting
from bellwether.experiments.analysis.outcome import Outcome
from bellwether.experiments.report.batch_axes import board, colour_of, crosses, dot, finish, marker, placed
from bellwether.experiments.report.facts import Bill, Facts, time_unit
from bellwether.experiments.report.lr_scaling import power
from bellwether.trainer.report.canvas import LIGHT, Size, legend, log_ticks
from bellwether.trainer.report.facts import compact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FAINT = 600  # more dots of other settings hide what they stand behind


def steps_note(facts: Facts) -> str:
    """The caption of `steps`: what is in it, and nothing else."""
    pale = ["pale dots: other settings"] if _pale(facts) else []
    missed = any(cell.missed or len(cell.best.reached) < len(cell.best.valid_runs) for cell in facts.cells)
    return "; ".join([
        "median and range over the seeds", *pale, *(["missed: more than the most that was tried"] if missed else [])
    ])  # fmt: skip


def samples_note(facts: Facts) -> str:
    """The caption of `samples`: what is in it, and nothing else."""
    fits = [series.fit for series in facts.series if series.fit is not None]
    if not fits:
        return "median and range over the seeds"
    band = "; band: 90 %" if any(len(fit.bootstrap) for fit in fits) else ""
    return f"line: samples = S_min (1 + B / B_crit){band}; B_crit takes twice S_min"


def steps(facts: Facts, size: Size) -> Figure | None:
    """Steps to the target against the batch, with the line on which twice the batch takes half the steps."""
    figure, ax = board(facts, replace(size, height=size.height * 1.2), "Steps to the target")
    for index, (series, _) in enumerate(placed(facts)):
        first = next((cell for cell in series.cells if cell.reached), None)
        if first is not None:
            x = np.array([first.batch, facts.batches[-1]], dtype=np.float64)
            ax.plot(
                x, first.best.steps * first.batch / x, color=colour_of(index), linewidth=0.9,
                linestyle=(0, (5, 4)), alpha=0.75, zorder=1,
            )  # fmt: skip
    if not _against(facts, ax, size, lambda run: run.steps, lambda cell: cell.most_steps, faint=True):
        return None
    if any(cell.reached for cell in facts.cells):
        ax.plot([], [], color=LIGHT["muted"], linewidth=0.9, linestyle=(0, (5, 4)), label="perfect scaling")
    return finish(figure, ax, size)


def samples(facts: Facts, size: Size) -> Figure | None:
    """Samples to the target against the batch: flat as long as the batch pays; the fit, its band, and B_crit."""
    figure, ax = board(facts, replace(size, height=size.height * 1.2), "Samples to the target")
    drawn = _against(facts, ax, size, lambda run: run.samples, lambda cell: cell.most_steps * cell.batch, line=False)
    if not drawn:
        return None
    x = np.geomspace(facts.batches[0], facts.batches[-1], 120)
    ends = ax.get_ylim()
    ax.set_ylim(ends)
    shown = False
    for index, (series, _) in enumerate(placed(facts)):
        fit, colour = series.fit, colour_of(index)
        if fit is None:
            continue
        ax.plot(x, fit.s_min * (1 + x / fit.b_crit), color=colour, linewidth=1.7, zorder=3)
        band = fit.band(x)
        if band is not None:
            ax.fill_between(
                x, *np.clip(band, ends[0] / 3, ends[1] * 3), color=colour, alpha=0.14, linewidth=0, zorder=1
            )
        if facts.batches[0] <= fit.b_crit <= facts.batches[-1]:
            if band is not None:
                low, high = max(fit.b_crit_low, x[0]), min(fit.b_crit_high, x[-1])
                ax.plot([low, high], [2 * fit.s_min] * 2, color=colour, linewidth=1.1, zorder=5)
            ax.plot(
                [fit.b_crit], [2 * fit.s_min], "D", color=LIGHT["card"], markeredgecolor=colour, markersize=6.5, zorder=6,
                label=None if shown else "B_crit",
            )  # fmt: skip
            shown = True
    return finish(figure, ax, size)


def metric(facts: Facts, size: Size) -> Figure | None:
    """Without a target: the best value of the metric in each cell."""
    figure, ax = board(facts, size, f"Best {facts.measure}", log=False)
    for index, (series, shift) in enumerate(placed(facts)):
        colour = colour_of(index)
        held = [(cell, mean) for cell in series.cells if (mean := cell.best.mean) is not None]
        ax.plot([cell.batch * shift for cell, _ in held], [mean for _, mean in held], color=colour, linewidth=1.5)
        for cell, mean in held:
            values = cell.best.values
            ax.plot([cell.batch * shift] * 2, [min(values), max(values)], color=colour, linewidth=1.1)
            for run in cell.best.valid_runs:
                if run.best is not None:
                    dot(facts, ax, index, cell.batch * shift, run.best, run, small=True)
            dot(facts, ax, index, cell.batch * shift, mean, cell.best.median_run)
        ax.plot([], [], color=colour, marker=marker(index), linewidth=1.5, label=series.name)
    if not ax.lines or not any(cell.best.mean is not None for cell in facts.cells):
        return None
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    legend(ax, size)
    return figure


def rates(facts: Facts, size: Size) -> Figure | None:
    """The best learning rate against the batch, the power through it, and the square-root and linear rules."""
    laws = [(index, series.law, shift) for index, (series, shift) in enumerate(placed(facts)) if series.law]
    if not laws:
        return None
    figure, ax = board(facts, size, "Best learning rate")
    x = np.array([facts.batches[0], facts.batches[-1]], dtype=np.float64)
    for index, found, shift in laws:
        series, colour = facts.series[index], colour_of(index)
        by_batch = {cell.batch: cell for cell in series.cells}
        for batch, lr in zip(found.batches, found.lrs, strict=True):
            cell = by_batch[batch]
            ax.plot([batch * shift] * 2, [cell.lrs[0], cell.lrs[-1]], color=colour, linewidth=0.8, alpha=0.35)
            ax.plot([batch * shift] * len(cell.lrs), cell.lrs, "_", color=colour, markersize=5, alpha=0.45)
            dot(facts, ax, index, batch * shift, lr, cell.best.median_run)
        if found.exponent is not None:
            ax.plot(x, [found(v) for v in x], color=colour, linewidth=1.5)
        grows = "" if found.exponent is None else f", B^{power(found.exponent)}"
        ax.plot([], [], color=colour, marker=marker(index), linewidth=1.5, label=f"{series.name}{grows}")
    low, high = ax.get_ylim()
    middle = math.exp(np.mean([math.log(lr) for _, found, _ in laws for lr in found.lrs]))
    centre = math.sqrt(x[0] * x[1])
    if x[0] < x[1]:
        for power_, style, label in ((0.5, (0, (5, 4)), "square root"), (1.0, (0, (1, 2.5)), "linear")):
            ax.plot(
                x, middle * (x / centre) ** power_, color=LIGHT["muted"], linewidth=1.0, linestyle=style, label=label
            )
    ax.set_ylim(low, high)
    log_ticks(ax.yaxis, low, high)
    legend(ax, size)
    return figure


def hours(facts: Facts, size: Size) -> Figure | None:
    """Wall time to the target, in the unit that suits the shortest."""
    bills = [bill.hours for cell in facts.cells if (bill := facts.bill(cell)) and math.isfinite(bill.hours)]
    length, unit = time_unit(min(bills, default=1.0))
    return _billed(facts, size, "Time to the target", lambda bill: bill.hours / length, f" {unit}")


def cost(facts: Facts, size: Size) -> Figure | None:
    """What reaching the target costs."""
    return _billed(facts, size, "Cost of the target", lambda bill: bill.cost)


def _billed(facts: Facts, size: Size, title: str, of: Callable[[Bill], float | None], unit: str = "") -> Figure | None:
    figure, ax = board(facts, size, title)
    for index, (series, shift) in enumerate(placed(facts)):
        points = [
            (cell, value) for cell in series.cells
            if (bill := facts.bill(cell)) and (value := of(bill)) and math.isfinite(value)
        ]  # fmt: skip
        if not points:
            continue
        colour = colour_of(index)
        ax.plot([cell.batch * shift for cell, _ in points], [value for _, value in points], color=colour, linewidth=1.5)
        for cell, value in points:
            dot(facts, ax, index, cell.batch * shift, value, cell.best.median_run)
        ax.plot([], [], color=colour, marker=marker(index), linewidth=1.5, label=series.name)
    if not ax.lines:
        return None
    finish(figure, ax, size)
    ax.yaxis.set_major_formatter(lambda value, _: f"{compact(value)}{unit}")
    return figure


def _against(
    facts: Facts,
    ax: Axes,
    size: Size,
    of: Callable[[Outcome], float],
    tried: Callable[[Cell], float],
    line: bool = True,
    faint: bool = False,
) -> bool:
    """Medians, seeds and their range of each cell's best setting; what missed stands at the top edge."""
    if not any(cell.reached or (cell.missed and tried(cell) > 0) for cell in facts.cells):
        return False
    pale = faint and _pale(facts)
    missed: list[tuple[float, float, int, Outcome]] = []
    for index, (series, shift) in enumerate(placed(facts)):
        colour = colour_of(index)
        held = [cell for cell in series.cells if cell.reached]
        middle = {cell.batch: float(np.median([of(run) for run in cell.best.valid_runs])) for cell in held}
        if line:
            ax.plot([cell.batch * shift for cell in held], list(middle.values()), color=colour, linewidth=1.7)
        if pale:
            dots = [
                (cell.batch * shift, float(np.median([of(run) for run in setting.valid_runs])))
                for cell in series.cells for setting in _others(cell)
            ]  # fmt: skip
            ax.plot([x for x, _ in dots], [y for _, y in dots], ".", color=colour, markersize=5, alpha=0.3, zorder=1)
        for cell in series.cells:
            reached = [of(run) for run in cell.best.reached]
            if reached:
                ax.plot([cell.batch * shift] * 2, [min(reached), max(reached)], color=colour, linewidth=1.1, zorder=3)
            for run in cell.best.reached:
                dot(facts, ax, index, cell.batch * shift, of(run), run, small=True)
            if cell.reached:
                dot(facts, ax, index, cell.batch * shift, middle[cell.batch], cell.best.median_run)
                lost = [run for run in cell.best.valid_runs if math.isinf(run.steps)]
                missed += [(cell.batch * shift, 0.0, index, run) for run in lost]
            elif cell.missed:
                missed.append((cell.batch * shift, tried(cell), index, cell.best.median_run))
        ax.plot([], [], color=colour, marker=marker(index), linewidth=1.7, label=series.name)
    if pale:
        ax.plot([], [], ".", color=LIGHT["muted"], markersize=5, alpha=0.5, label="other settings")
    crosses(facts, ax, missed)
    return True


def _others(cell: Cell) -> list[Setting]:
    """The settings beside the best one that reached the target too."""
    return [setting for setting in cell.settings[1:] if math.isfinite(setting.steps)]


def _pale(facts: Facts) -> bool:
    """Whether there are other settings to show, and not too many."""
    return 0 < sum(len(_others(cell)) for cell in facts.cells) <= _FAINT
