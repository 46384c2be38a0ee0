"""``bellwether recipe``: what was published, at the batches that are asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bellwether.optimizers.recipes import RECIPES, Settings, recipe
from bellwether.trainer.config import ConfigError


def show(name: str | None, batches: Sequence[int], as_json: bool) -> int:
    """Print a recipe's table; without a name, all recipes; without batches, those that were published.

    Raises:
        ConfigError: if there is no such recipe.
    """
    if name is None and batches:
        raise ConfigError("NAME", None, "of which recipe?", f"name one of {', '.join(RECIPES)}")
    if name is None and as_json:
        known = [
            {"recipe": each.name, "about": each.about, "source": each.source, "batches": list(each.published)}
            for each in RECIPES.values()
        ]
        print(json.dumps(known, indent=1))
        return 0
    if name is None:
        width = max(map(len, RECIPES))
        for each in RECIPES.values():
            print(f"{each.name:<{width}}  {each.about}")
        return 0
    try:
        chosen = recipe(name)
    except ValueError as error:
        raise ConfigError("NAME", name, str(error).partition(": ")[2]) from None
    found = [settings for batch in batches or chosen.published for settings in chosen.at(batch)]
    for batch in batches:
        warning = chosen.warning(batch)
        if warning is not None:
            print(f"bellwether: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps([{"recipe": chosen.name, **_said(settings)} for settings in found], indent=1))
        return 0
    print(f"{chosen.name}: {chosen.about}\n  {chosen.source}\n")
    columns = [key for key in _said(found[0]) if any(_said(s).get(key) not in (None, "") for s in found)]
    rows = [[_text(key, getattr(s, key)) for key in columns] for s in found]
    heads = [key.replace("_", " ") for key in columns]
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(columns))]
    for row in [heads, *rows]:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))
    return 0


def _said(settings: Settings) -> dict[str, Any]:
    """What the source says; and nothing of what it leaves open."""
    hidden = {"phase": 1, "warmup_from": 0.0, "power": 1.0, "milestones": ()}
    return {k: v for k, v in asdict(settings).items() if v is not None and hidden.get(k, object()) != v}


def _text(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key == "published":
        return "yes" if value else "by the rule"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(f"{part:g}" for part in value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
