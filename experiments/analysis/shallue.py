"""Reads and writes the layout in which Shallue et al. 2018 (1811.03600) published their measurements.

::

    DATASET/MODEL/OPTIMIZER/BATCH_SIZE/study.json
    DATASET/MODEL/OPTIMIZER/BATCH_SIZE/TRIAL/metadata.json
    DATASET/MODEL/OPTIMIZER/BATCH_SIZE/TRIAL/measurements.csv

There, a study is one batch size of one workload. A trial's status is COMPLETE, INCOMPLETE, or INFEASIBLE if training
diverged. What their layout does not provide for is stored in ``metadata.json`` under ``bellwether``, which their reader
ignores.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bellwether.experiments.sweep.measurements import OLD_STATUSES, Status, Trial, Value, measurement
from bellwether.trainer.config import ConfigError
from bellwether.trainer.config.renamed import convert_paths

_STATUS: dict[Status, str] = {
    "complete": "COMPLETE", "diverged": "INFEASIBLE", "pruned": "INCOMPLETE", "failed": "INCOMPLETE",
    "unfinished": "INCOMPLETE",
}  # fmt: skip
_STATUS_OF: dict[str, Status] = {"COMPLETE": "complete", "INFEASIBLE": "diverged", "INCOMPLETE": "unfinished"}
_EXTRA = ("seed", "status", "epoch", "processes", "seconds", "run")


def write(root: str | Path, trials: Sequence[Trial]) -> None:
    """Write trials below a new directory.

    Raises:
        FileExistsError: if the directory exists.
    """
    root = Path(root)
    studies: dict[Path, list[Trial]] = defaultdict(list)
    for trial in trials:
        names = (trial.dataset or "unknown", trial.model or "unknown", trial.optimizer or "unknown")
        parts = [name.replace("/", "_") for name in names]
        studies[root.joinpath(*parts, str(trial.batch_size))].append(trial)
    root.mkdir(parents=True)
    for folder, members in studies.items():
        folder.mkdir(parents=True)
        first = members[0]
        about = {
            "batch_size": first.batch_size, "dataset": first.dataset,
            "early_stopping": any(trial.status == "pruned" for trial in members), "model": first.model,
            "optimizer": first.optimizer, "parameter_configs": _searched([trial.parameters for trial in members]),
            "train_steps": min((int(t.measurements[-1]["step"]) for t in members if _is_complete(t)), default=0),
        }  # fmt: skip
        (folder / "study.json").write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
        for number, trial in enumerate(members, 1):
            _write(folder / str(number), number, trial)


def read(root: str | Path, key: str = "FILE") -> list[Trial]:
    """Read all trials below a directory, in order of workload, batch size and number.

    Args:
        key: name of the command line argument, for errors.

    Raises:
        ConfigError: if there are none, or naming the file that is invalid.
    """
    studies = sorted(Path(root).rglob("study.json"), key=lambda path: (str(path.parent.parent), _number(path.parent)))
    if not studies:
        advice = "give a sweep's directory, or one in the layout of Shallue et al."
        raise ConfigError(key, str(root), "holds neither a measurements.csv nor a study.json", advice)
    trials: list[Trial] = []
    for file in studies:
        about = _json(file, key)
        for folder in sorted(filter(Path.is_dir, file.parent.iterdir()), key=_number):
            trials.append(_read(folder, about, len(trials), key))
    return trials


def _write(folder: Path, number: int, trial: Trial) -> None:
    folder.mkdir()
    last = trial.measurements[-1]["step"] if trial.measurements else 0
    about = {
        "parameters": dict(trial.parameters), "status": _STATUS[trial.status], "steps": last, "trial_id": number,
        "bellwether": {name: getattr(trial, name) for name in _EXTRA},
    }  # fmt: skip
    (folder / "metadata.json").write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
    columns = sorted({name for m in trial.measurements for name in m} - {"step", "samples"})
    with open(folder / "measurements.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["step", *columns], restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(trial.measurements)


def _read(folder: Path, study: Mapping[str, Any], number: int, key: str) -> Trial:
    about = _json(folder / "metadata.json", key)
    extra = about.get("bellwether") or {}
    file = folder / "measurements.csv"
    try:
        status = extra.get("status") or _STATUS_OF[about["status"]]
        status = OLD_STATUSES.get(status, status)
        batch = int(study["batch_size"])
        with open(file, newline="", encoding="utf-8") as stream:
            rows = [measurement(row, batch) for row in csv.DictReader(stream)]
        return Trial(
            number, str(study["dataset"]), str(study["model"]), str(study["optimizer"]), batch, int(extra.get("seed") or 0),
            status, convert_paths(about.get("parameters") or {}), rows,
            **{name: extra[name] for name in ("epoch", "processes", "seconds", "run") if name in extra},
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(key, str(file), f"cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(key, str(folder), f"is not a trial in the layout of Shallue et al.: {error!r}") from None


def _is_complete(trial: Trial) -> bool:
    return trial.status == "complete" and bool(trial.measurements)


def _searched(settings: Sequence[Mapping[str, Value]]) -> dict[str, Any]:
    """The search space, as far as it can be inferred from the trials."""
    found: dict[str, Any] = {}
    for name in sorted({name for setting in settings for name in setting}):
        values = [setting[name] for setting in settings if name in setting]
        numbers = [v for v in values if isinstance(v, float)]
        if len(numbers) == len(values):
            found[name] = {"type": "DOUBLE", "min_value": min(numbers), "max_value": max(numbers), "scale": ""}
        else:
            points = {json.dumps(value): value for value in values}
            found[name] = {"type": "DISCRETE", "feasible_points": [points[text] for text in sorted(points)]}
    return found


def _number(folder: Path) -> tuple[int, str]:
    return (int(folder.name) if folder.name.isdigit() else 0), folder.name


def _json(file: Path, key: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not an object")
        return found
    except OSError as error:
        raise ConfigError(key, str(file), f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(key, str(file), f"is not valid JSON: {error}") from None
