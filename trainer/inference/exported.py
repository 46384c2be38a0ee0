"""The models that runs have exported, or that lie in folders of elsewhere, and how their runs read data."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

from bellwether.trainer.config import ConfigError, load, phases
from bellwether.trainer.config.schema.data import DataConfig


def task_of(folder: Path, tasks: Iterable[str]) -> str | None:
    """Which of the tasks the model of a run or folder was trained for, by the name of its architecture; None: none of them, or no model."""
    try:
        content = json.loads((_export(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    names = content.get("architectures") or () if isinstance(content, dict) else ()
    return next((task for task in tasks if any(str(name).endswith(task) for name in names)), None)


def export_of(folder: Path) -> Path:
    """The folder with the model of a run, an export, or a folder.

    Raises:
        ConfigError: if there is no model.
    """
    export = _export(folder)
    if (export / "config.json").is_file():
        return export
    problem = "holds no model" if folder.is_dir() else "no such folder"
    if (folder / "config.yaml").is_file():
        problem = "has no export"
    advice = "name a finished run, its export, or a folder that save_pretrained wrote"
    raise ConfigError("RUN_OR_FOLDER", str(folder), problem, advice)


def run_of(folder: Path) -> Path | None:
    """The run that a folder is, or whose export it is."""
    paths = (folder, folder.parent)
    return next((path for path in paths if (path / "config.yaml").is_file() and (path / "export").is_dir()), None)


def keys_of_run(folder: Path, kind: str, kept: Collection[str]) -> dict[str, Any]:
    """Some keys of the section ``data`` of the last phase of a folder's run; none where there is no run, or its data are of another kind."""
    data = last_data_of(folder)
    return {} if data is None or getattr(data, "kind", "") != kind else {key: getattr(data, key) for key in kept}


def held_out_of(folder: Path) -> str | None:
    """The held-out file of a run's data; None if it has several, or holds out a share of its training data, or takes them from a hub.

    Raises:
        ConfigError: if the folder belongs to no run.
    """
    data = last_data_of(folder)
    if data is None:
        raise ConfigError("RUN_OR_FOLDER", str(folder), "belongs to no run", "name labelled data: --data FILE")
    # Formats of other names, and splits of a hub, are read as the run's config says.
    is_file = isinstance(data.validation, str) and data.format == "auto" and data.is_local()
    return str(data.validation) if is_file else None


def last_data_of(folder: Path) -> DataConfig | None:
    """The section ``data`` of the last phase of the run that a folder belongs to; None if it belongs to none."""
    run = run_of(folder)
    return None if run is None else phases(load(run / "config.yaml", quiet=True))[-1].data


def load_model(folder: Path, export: Path, auto_class: str) -> Any:
    """The model of a folder, in float32.

    Raises:
        ConfigError: with the reason of transformers.
    """
    transformers.utils.logging.disable_progress_bar()
    auto = getattr(transformers, auto_class)
    try:
        return auto.from_pretrained(export, use_safetensors=True, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:
        problem = f"transformers cannot load it: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        advice = "name a folder with config.json and model.safetensors"
        raise ConfigError("RUN_OR_FOLDER", str(folder), problem, advice) from error


def _export(folder: Path) -> Path:
    return folder / "export" if (folder / "export" / "config.json").is_file() else folder
