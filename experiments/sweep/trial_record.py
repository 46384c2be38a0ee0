"""One trial on disk: the parameters decided when it started, and the measurements in its run directory."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from bellwether.experiments.sweep import spec
from bellwether.experiments.sweep.measurements import Status, Trial, Value
from bellwether.trainer import metrics, metrics_format
from bellwether.trainer.config import ConfigErrors
from bellwether.trainer.config.renamed import convert_paths

_TRAIN_METRICS = ("loss", "lr", "grad_norm", "samples_per_s", "step_time", "noise_scale")


@dataclass(frozen=True)
class TrialRecord:
    """The parameters of a trial, decided when it starts and never changed: the content of ``trials/NAME.json``."""

    optimizer: str
    batch: int
    seed: int  #: of the config
    setting: int
    parameters: dict[str, Value]
    stop_after: int | None  #: steps after which the trial is pruned; None: never


def read_trial(trials_dir: Path, name: str, processes: int) -> Trial | None:
    """The current state of a trial; None if it has not started.

    Args:
        processes: of the trial, where its run directory does not tell.
    """
    try:
        raw = json.loads((trials_dir / f"{name}.json").read_text())
        config = spec.load(trials_dir / f"{name}.yaml", quiet=True)
    except (OSError, ConfigErrors):  # between the writing of the two files
        return None
    record = TrialRecord(**{**raw, "parameters": convert_paths(raw["parameters"])})
    history = metrics.read(trials_dir / name)
    epochs = [line for line in history.train if line.get("epoch") and line["samples"]]
    return Trial(
        0, Path(config.data.source).name, config.model.label, record.optimizer, record.batch, record.seed,
        _status(history, record, failed=(trials_dir / f"{name}.failed").exists()), record.parameters, _measurements(history),
        epoch=round(epochs[-1]["samples"] / epochs[-1]["epoch"]) if epochs else None,
        processes=int(history.start[-1].get("world_size", 1)) if history.start else processes,
        seconds=history.seconds, run=f"trials/{name}",
    )  # fmt: skip


def _status(history: metrics.History, record: TrialRecord, failed: bool) -> Status:
    if history.state == "diverged" or (history.train and not math.isfinite(history.train[-1]["loss"])):
        return "diverged"
    if history.state in ("finished", "reached"):
        return "complete"
    if failed:
        return "failed"
    # A signal stops a run too, and that run is resumed.
    limit = record.stop_after
    pruned = history.state == "stopped" and limit is not None and history.end[-1]["step"] >= limit
    return "pruned" if pruned else "unfinished"


def _measurements(history: metrics.History) -> list[dict[str, float]]:
    """One row per evaluation, with the latest training metrics, and one where training ended without an evaluation."""
    rows = []
    train = iter(history.train)
    latest: metrics.Line = {}
    upcoming = next(train, None)
    for line in history.eval:
        while upcoming is not None and upcoming["step"] <= line["step"]:
            latest, upcoming = upcoming, next(train, None)
        rows.append(_row(line, latest))
    if history.train and (not rows or history.train[-1]["step"] > rows[-1]["step"]):
        rows.append(_row({}, history.train[-1]))
    return rows


def _row(evaluation: metrics.Line, train: metrics.Line) -> dict[str, float]:
    position = evaluation or train
    row = {f"train/{key}": train[key] for key in _TRAIN_METRICS if train.get(key) is not None}
    row |= {f"val/{key}": value for key, value in evaluation.items() if metrics_format.is_held_out(key)}
    return {"step": position["step"], "samples": position["samples"], **row}
