"""The recipes that come with the package: the YAML files of configs/, found by name wherever bellwether is installed."""

from __future__ import annotations

from pathlib import Path

import bellwether

FOLDER = (Path(bellwether.__file__).parent / "configs").resolve()
SWEEPS = FOLDER / "experiments"


def shipped_recipes(folder: Path = FOLDER) -> list[str]:
    """Names of the shipped recipes, such as ``bert-tiny``; with `folder` SWEEPS, of the shipped sweeps."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def is_name(path: str | Path) -> bool:
    """Whether this can be the name of a recipe: one word, without a folder or the suffix of a YAML file."""
    path = Path(path)
    return len(path.parts) == 1 and path.suffix not in (".yaml", ".yml")


def find(name: str | Path, folder: Path = FOLDER) -> Path | None:
    """The file of a shipped recipe, or None if there is no recipe of that name."""
    return folder / f"{name}.yaml" if str(name) in shipped_recipes(folder) else None
