"""The recipes that come with the package: the YAML files of configs/, found by name wherever bellwether is installed."""

from __future__ import annotations

from pathlib import Path

import bellwether

FOLDER = Path(bellwether.__file__).resolve().parent / "configs"


def shipped_recipes() -> list[str]:
    """Names of the shipped recipes, such as ``bert-tiny``."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def is_name(path: str | Path) -> bool:
    """Whether this can be the name of a recipe: one word, no folder and no suffix of a YAML file."""
    path = Path(path)
    return len(path.parts) == 1 and path.suffix not in (".yaml", ".yml")


def find(name: str | Path) -> Path | None:
    """The file of a shipped recipe; None if there is no recipe of that name."""
    return FOLDER / f"{name}.yaml" if str(name) in shipped_recipes() else None
