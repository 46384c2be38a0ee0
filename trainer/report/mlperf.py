"""A run among MLPerf's reference convergence points and submissions: a table, and a picture of their counts."""

from __future__ import annotations

from statistics import mean

from bellwether.trainer.report.chart import LIGHT, TEXT, Chart, count_ticks
from bellwether.trainer.report.facts import ABSENT, Facts
from bellwether.trainer.report.html import Table

_HEIGHT = 150.0


def table(facts: Facts) -> Table:
    """The run, the reference point and the submissions of its batch size."""
    placement = facts.placement
    found: list[tuple[str, str, str]] = []
    if placement is not None:
        run, reference = placement.result, placement.reference
        reached = f"held-out accuracy {run.benchmark.target:g}"
        not_yet = (
            "not reached" if run.accuracy is None else f"not reached: {run.accuracy:.4f} after {_count(run.newest)}"
        )
        found.append(
            ("this run", ABSENT if run.count is None else _count(run.count), reached if run.count else not_yet)
        )
        if reference is not None:
            runs = f"{len(reference.counts)} runs, {_count(min(reference.counts))} to {_count(max(reference.counts))}"
            least = "a submission's least mean that MLPerf accepts"
            found += [("reference", _count(reference.mean), runs), ("limit", _count(reference.least), least)]
        else:
            near = " and ".join(f"{batch:,}" for batch in placement.nearest)
            found.append(("reference", ABSENT, placement.missing or f"none at batch {run.batch:,}; nearest: {near}"))
        if placement.submissions:
            counts = [each.count for each in placement.submissions]
            within = f"{len(counts)} of training v2.1 to v4.0, {_count(min(counts))} to {_count(max(counts))}"
            found.append(("submissions", _count(mean(counts)), within))
    unit = placement.result.benchmark.unit if placement is not None else ""
    columns = [("", "name", 0), (f"{unit} to the target", "n", 1), ("", "note", 2)]
    return Table([(label, kind, lambda row, at=at: row[at]) for label, kind, at in columns], found)


def strip(facts: Facts) -> Chart | None:
    """A point for each run of the reference and for each submission, and a line for this run."""
    placement = facts.placement
    if placement is None or (placement.reference is None and not placement.submissions):
        return None
    run, reference = placement.result, placement.reference
    rows = {
        "submissions": [(each.count, each.source) for each in placement.submissions],
        "reference": [(count, "a run of the reference") for count in (reference.counts if reference else ())],
    }
    chart = Chart(f"{run.benchmark.unit} to the target", _HEIGHT)
    for place, (name, colour) in enumerate((("submissions", "orange"), ("reference", "blue"))):
        counts = [count for count, _ in rows[name]]
        chart.ax.plot(counts, [place] * len(counts), "o", color=LIGHT[colour], alpha=0.45, markersize=6)
        chart.tip(name, colour, [(count, float(place), text, _count(count)) for count, text in sorted(rows[name])])
    if reference is not None:
        chart.ax.plot([reference.least] * 2, [0.7, 1.3], color=LIGHT["muted"], linestyle="--")
        chart.ax.annotate("limit", (reference.least, 1.35), fontsize=TEXT - 1, color=LIGHT["muted"], ha="center")
    if run.count is not None:
        chart.ax.plot(run.count, 2, "D", color=LIGHT["green"], markersize=8)
        chart.tip("this run", "green", [(run.count, 2.0, "this run", _count(run.count))])
    chart.ax.set_yticks([0, 1, 2], ["submissions", "reference", "this run"])
    chart.ax.set_ylim(-0.6, 2.6)
    chart.ax.margins(x=0.08)
    count_ticks(chart.ax.xaxis)
    return chart


def _count(value: float) -> str:
    """Samples, or epochs with two digits after the point where they are not whole.

    >>> _count(2549219.55), _count(35.15384), _count(41.0)
    ('2,549,220', '35.15', '41')
    """
    return f"{value:,.0f}" if value >= 1000 or value.is_integer() else f"{value:,.2f}"
