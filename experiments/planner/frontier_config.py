"""Writes the config of a recommended option: batch size, length, learning rate and warm-up, with where each is from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bellwether.experiments.analysis import aggregate, io
from bellwether.experiments.planner.frontier import Option
from bellwether.experiments.sweep.spec import flow
from bellwether.trainer.config import Config
from bellwether.trainer.config.overrides import apply_override

_RECIPES = {"bert": "mlperf-bert", "resnet": "mlperf-resnet"}  # of MLPerf's reference convergence points, by benchmark
_SECTIONS = ("optimizer", "averaging", "loss", "scaling", "schedule")  # what a sweep's best setting decides


def write(
    option: Option,
    config: Config,
    parent: str,
    source: str,
    overrides: Sequence[str],
    optimizer: str | None,
    per_node: int,
    folder: Path,
) -> Path:
    """Write ``NAME-GPUS-BATCH.yaml`` into a folder. Returns its path."""
    settings, origin = _settings(option, config, source, optimizer)
    length = math.ceil(option.samples.high / option.batch) * option.batch
    keys: dict[str, Any] = {
        "name": f"{config.name}-{option.gpus}-{option.batch}", "batch": {"global": option.batch, "micro": config.batch.micro},
        "duration": f"{length} samples", **settings,
    }  # fmt: skip
    if isinstance(settings.get("schedule"), str):  # a recipe has a length of its own
        del keys["duration"]
    if config.engine.world_size is not None:
        keys["engine"] = {"world_size": option.gpus}
        overrides = [each for each in overrides if not each.startswith("engine.world_size=")]
    below = Path(parent)
    name = str(below.resolve()) if below.is_file() else parent
    path = folder / f"{keys['name']}.yaml"
    text = [
        f"# {option.gpus:,} GPUs, batch {option.batch:,}: {option.hours.middle:.3g} hours (90 %: {option.hours.low:.3g} to {option.hours.high:.3g}),",
        f"# by bellwether frontier from {source}",
        f"#   samples   {option.samples.middle:,.0f} to the target (90 %: {option.samples.low:,.0f} to {option.samples.high:,.0f})",
        f"#   settings  {origin}",
        *([f"#   overrides {' '.join(overrides)}: pass them again"] if overrides else []),
        f"#   command   bellwether launch {path} --on slurm --nodes {math.ceil(option.gpus / per_node)}",
        yaml.safe_dump({"extends": name, **keys}, sort_keys=False).rstrip(),
    ]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def _settings(option: Option, config: Config, source: str, optimizer: str | None) -> tuple[dict[str, Any], str]:
    """Keys of optimizer and schedule at the batch size, and where they are from."""
    path = Path(source)
    if path.suffix.lower() == ".json":
        name = next((recipe for benchmark, recipe in _RECIPES.items() if benchmark in path.stem), None)
        if name is not None:
            return {"schedule": name}, f"the recipe {name}, which has the hyperparameters of these measurements"
    elif (found := _of_sweep(option.batch, path, optimizer)) is not None:
        return found
    if config.schedule.recipe is not None:
        return {"schedule": config.schedule.recipe}, f"the config's recipe {config.schedule.recipe}"
    if config.scaling.base_batch is not None and config.scaling.rule != "none":
        return {}, f"the config's, scaled to this batch size by scaling.rule: {config.scaling.rule}"
    return (
        {},
        "the config's learning rate and warm-up, UNCHANGED: set optimizer.lr for this batch size, or scaling.rule",
    )


def _of_sweep(batch: int, path: Path, optimizer: str | None) -> tuple[dict[str, Any], str] | None:
    """The best settings of a sweep at the nearest measured batch size; None if the file is not a sweep's, or has no target."""
    folder = path if path.is_dir() else path.parent
    settings = io.settings(folder)
    goal = io.target(None, settings)
    if goal is None:
        return None
    cells = aggregate.choose(aggregate.group_trials(io.read(path), goal, io.early_stop(settings)), optimizer, str(path))
    cell = min((cell for cell in cells if cell.reached), key=lambda each: abs(math.log(each.batch / batch)))
    variant = (settings.get("optimizers") or {}).get(cell.optimizer) or {}
    found = {**(settings.get("set") or {}), **(variant.get("set") or {}), **cell.best.parameters}
    return _nested(found), f"the best of the sweep at batch {cell.batch:,}, {cell.optimizer}"


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a sweep that decide how a model is trained, as sections of a config. A list is text in the sweep's table."""
    keys: dict[str, Any] = {}
    for key, value in settings.items():
        if key.split(".")[0] in _SECTIONS:
            apply_override(keys, {}, f"{key}={value if isinstance(value, str) else flow(value)}", [])
    return keys
