"""``bellwether recipe``: the settings of published recipes, at their batch sizes or at others."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bellwether.launcher import console
from bellwether.optimizers.recipes import RECIPES, Recipe, Settings, recipe
from bellwether.trainer.config import ConfigError

_log = logging.getLogger(__name__)

# Fields that are not shown if they have these values.
_DEFAULTS: dict[str, Any] = {
    "phase": 1,
    "warmup_from": 0.0,
    "power": 1.0,
    "milestones": (),
    "decay_from": "warmup",
    "warmup_power": 1.0,
    "final": 0.0,
}


def show(name: str | None, batches: Sequence[int], as_json: bool) -> int:
    """Print a recipe's settings. Returns the exit status for the shell.

    Args:
        name: of the recipe; None: list all recipes.
        batches: global batch sizes; empty: the published ones.

    Raises:
        ConfigError: if there is no such recipe, or batch sizes are given without a recipe.
    """
    console.setup()
    if name is None:
        if batches:
            raise ConfigError("NAME", None, "is required with --batch", f"write one of {', '.join(RECIPES)}")
        _list(as_json)
        return 0
    try:
        chosen = recipe(name)
    except ValueError as error:
        raise ConfigError("NAME", name, str(error).partition(": ")[2]) from None
    for batch in batches:
        warning = chosen.warning(batch)
        if warning is not None:
            _log.warning("%s", warning)
    settings = [each for batch in batches or chosen.published for each in chosen.at(batch)]
    if as_json:
        print(json.dumps([{"recipe": chosen.name, **_known(each)} for each in settings], indent=1))
    else:
        _print_table(chosen, settings)
    return 0


def _list(as_json: bool) -> None:
    """Print all recipes."""
    if as_json:
        recipes = [
            {"recipe": each.name, "about": each.about, "source": each.source, "batches": list(each.published)}
            for each in RECIPES.values()
        ]
        print(json.dumps(recipes, indent=1))
        return
    width = max(map(len, RECIPES))
    for each in RECIPES.values():
        print(f"{each.name:<{width}}  {each.about}")


def _print_table(chosen: Recipe, settings: Sequence[Settings]) -> None:
    print(f"{chosen.name}: {chosen.about}\n  {chosen.source}\n")
    columns = [key for key in _known(settings[0]) if any(_known(s).get(key) not in (None, "") for s in settings)]
    rows = [[_text(key, getattr(s, key)) for key in columns] for s in settings]
    heads = [key.replace("_", " ") for key in columns]
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(columns))]
    for row in [heads, *rows]:
        print("  ".join(f"{text:>{width}}" for text, width in zip(row, widths, strict=True)))


def _known(settings: Settings) -> dict[str, Any]:
    """The fields that the source specifies and that are not defaults."""
    return {
        key: value
        for key, value in asdict(settings).items()
        if value is not None and not (key in _DEFAULTS and value == _DEFAULTS[key])
    }


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
