"""The report's page: HTML from facts and pictures. Everything that comes from a run is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape

from bellwether.trainer.report import tables
from bellwether.trainer.report.canvas import Drawn
from bellwether.trainer.report.facts import Facts, finite
from bellwether.trainer.report.markup import document, figures, folded, head, tiles

TRUST = "Trust ratios"
NOISE = "Batch size"
WALK = "The walk"
OPTIONAL = (TRUST, NOISE, WALK)  # left out where a run has nothing to show


def page(facts: Facts, sections: Sequence[tuple[str, Sequence[Drawn]]]) -> str:
    """The whole document; `sections` are (heading, pictures), in order."""
    body = [_head(facts), tiles(tables.headlines(facts))]
    for heading, drawn in sections:
        body.append(f"<h2>{escape(heading)}</h2>")
        body.append(figures(drawn))
        if heading == TRUST:
            body.append(tables.layers(facts))
    body += [
        tables.plan(facts),
        tables.evaluations(facts),
        tables.checkpoints(facts),
        _config(facts),
        _foot(facts),
    ]
    return document(facts.name, body)


def _head(facts: Facts) -> str:
    h = facts.history
    first, latest = (h.start[0], h.start[-1]) if h.start else ({}, {})
    model = [facts.setting("model", key) for key in ("kind", "size", "depth", "width")]
    world = latest.get("world_size")
    about = [
        "-".join(str(part) for part in model if part is not None),
        str(facts.setting("data", "source") or ""),
        f"{world} × {str(latest.get('device', '?')).split(':')[0]}" if isinstance(world, int) else "",
        f"ZeRO-{facts.setting('engine', 'stage')}" if facts.setting("engine", "stage") is not None else "",
        str(facts.setting("engine", "precision") or ""),
        f"started {_date(first['time'])}" if finite(first.get("time")) else "",
    ]
    return head("report of a run", facts.name, (h.state, h.state), about, facts.missing)


def _config(facts: Facts) -> str:
    if not facts.config_text:
        return ""
    return "<h2>Config</h2>\n" + folded("As resolved", "config.yaml", f"<pre>{escape(facts.config_text)}</pre>")


def _foot(facts: Facts) -> str:
    versions = list(dict.fromkeys(str(line["version"]) for line in facts.history.start if line.get("version")))
    by = f"Bellwether {escape(' then '.join(versions))}" if versions else "Bellwether"
    return f"<footer>{by}. The same pictures lie in plots/ as PNG, the numbers in metrics.jsonl.</footer>"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
