"""What a run was trained on: the summary of its data as a table and as a histogram."""

from __future__ import annotations

import json

from bellwether.trainer.data.summary import DataSummary
from bellwether.trainer.data.summary_lines import rows
from bellwether.trainer.report.chart import LIGHT, Chart, evenly
from bellwether.trainer.report.facts import Facts, compact
from bellwether.trainer.report.html import Table
from bellwether.trainer.run_paths import DATA

_BARS = 60  # at most, evenly chosen


def summaries(facts: Facts) -> list[DataSummary]:
    """The summaries that the run has stored, one for each phase with data of its own; none in runs of older versions."""
    try:
        return [DataSummary.from_json(each) for each in json.loads((facts.run / DATA).read_text(encoding="utf-8"))]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def table(facts: Facts) -> Table:
    """The lines that the log has before the first step."""
    found = [row for each in summaries(facts) for row in rows(each)]
    return Table([("", "name", lambda row: row[0]), ("", "text", lambda row: row[1])], found)


def histogram(facts: Facts) -> Chart | None:
    """The lengths of the documents, or the images of each class, of the first phase."""
    found = summaries(facts)
    if not found or not found[0].source.histogram:
        return None
    source = found[0].source
    bars = evenly(list(source.histogram.items()), _BARS)
    chart = Chart(source.histogram_of)
    places, counts = range(len(bars)), [count for _, count in bars]
    chart.ax.bar(places, counts, color=LIGHT["blue"])
    chart.ax.yaxis.set_major_formatter(lambda value, _: compact(value))
    shown = evenly(list(enumerate(label for label, _ in bars)), 8)
    chart.ax.set_xticks([place for place, _ in shown], [_short(label) for _, label in shown], rotation=20, ha="right")
    tips = [(float(place), float(count), label, f"{count:,}") for place, (label, count) in enumerate(bars)]
    chart.tip("", "blue", tips)
    return chart


def _short(label: str) -> str:
    return label if len(label) <= 14 else label[:13] + "…"
