"""The report's page: HTML from facts and pictures. Everything that comes from a run is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path

from trainer.report import tables
from trainer.report.canvas import DARK, LIGHT, Picture
from trainer.report.facts import Facts, finite

TRUST = "Trust ratios"
NOISE = "Batch size"
WALK = "The walk"
OPTIONAL = (TRUST, NOISE, WALK)  # left out where a run has nothing to show

Drawn = tuple[Picture, str | None, str | None]  #: a picture, its SVG for a desk and its SVG for a phone


def page(facts: Facts, sections: Sequence[tuple[str, Sequence[Drawn]]]) -> str:
    """The whole document; `sections` are (heading, pictures), in order."""
    body = [_head(facts), tables.tiles(facts)]
    for heading, drawn in sections:
        body.append(f"<h2>{escape(heading)}</h2>")
        body.append(_figures(drawn))
        if heading == TRUST:
            body.append(tables.layers(facts))
    body += [
        tables.plan(facts),
        tables.evaluations(facts),
        tables.checkpoints(facts),
        _config(facts),
        _foot(facts),
    ]
    title = f"{escape(facts.name)} · Bellwether"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{title}</title>\n<link rel="icon" href="data:,">\n<style>\n{_style()}</style>\n'
        "</head>\n<body>\n<main>\n" + "\n".join(part for part in body if part) + "\n</main>\n</body>\n</html>\n"
    )


def _style() -> str:
    """The colours as CSS variables, which the pictures use too, and the look. Paper has the light ones."""
    light, dark = (
        "".join(f"--{name}: {colour}; " for name, colour in palette.items())
        for palette in ({**LIGHT, "page": "#f7f5f1"}, {**DARK, "page": "#131517"})
    )
    return (
        f":root {{ color-scheme: light dark; {light}}}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n"
        + Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    )


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
    line = " · ".join(f"<span>{escape(part)}</span>" for part in about if part)
    missing = "".join(f"<p>{escape(text)}</p>" for text in facts.missing)
    return (
        f'<header>\n<p class="brand">Bellwether · report of a run</p>\n'
        f'<div class="head"><h1>{escape(facts.name)}</h1>'
        f'<span class="state {escape(h.state, quote=True)}">{escape(h.state)}</span></div>\n'
        f'<p class="about">{line}</p>\n</header>' + (f'\n<div class="missing">{missing}</div>' if missing else "")
    )


def _figures(drawn: Sequence[Drawn]) -> str:
    parts: list[str] = []
    pair: list[str] = []
    for picture, desk, phone in drawn:
        caption = f"<figcaption><b>{escape(picture.title)}</b> <span>{escape(picture.note)}</span></figcaption>"
        if desk is None:
            inner = '<p class="absent">Nothing logged.</p>'
        else:
            named = f'<svg role="img" aria-label="{escape(picture.title, quote=True)}"'
            inner = desk.replace("<svg", named, 1)
            if phone is not None:
                phone = phone.replace("<svg", named, 1)
                inner = f'<div class="wide">{inner}</div><div class="narrow">{phone}</div>'
        figure = f"<figure>{caption}{inner}</figure>"
        if picture.wide:
            parts += [_pair(pair), figure]
            pair = []
        else:
            pair.append(figure)
    return "\n".join(part for part in [*parts, _pair(pair)] if part)


def _pair(figures: list[str]) -> str:
    return f'<div class="pair">{"".join(figures)}</div>' if figures else ""


def _config(facts: Facts) -> str:
    if not facts.config_text:
        return ""
    return (
        "<h2>Config</h2>\n<details><summary>As resolved <span>config.yaml</span></summary>"
        f"<pre>{escape(facts.config_text)}</pre></details>"
    )


def _foot(facts: Facts) -> str:
    versions = list(dict.fromkeys(str(line["version"]) for line in facts.history.start if line.get("version")))
    by = f"Bellwether {escape(' then '.join(versions))}" if versions else "Bellwether"
    return f"<footer>{by}. The same pictures lie in plots/ as PNG, the numbers in metrics.jsonl.</footer>"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
