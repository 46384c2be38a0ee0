"""Scores of a run's export on held-out data of the run's own kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bellwether.trainer import models, scores
from bellwether.trainer.config import ConfigError, load, phases
from bellwether.trainer.data import Dataset
from bellwether.trainer.data.loader import evaluation_batches
from bellwether.trainer.data.plain_text import PlainText
from bellwether.trainer.data.token_stream import TokenStreamData
from bellwether.trainer.held_out_means import HeldOutMeans
from bellwether.trainer.inference.exported import export_of, run_of
from bellwether.trainer.inference.predictor import Results, outputs
from bellwether.trainer.metrics_format import of_set_named
from bellwether.trainer.models.architecture import for_checkpoint
from bellwether.trainer.models.language_modelling import LanguageModelling
from bellwether.trainer.models.tasks import SequenceClassification, Task

if TYPE_CHECKING:
    from bellwether.trainer.data import Scorer


def results_of_run(folder: Path, data: str | None, batch: int, device: str) -> Results:
    """Loss and accuracy of a run's export on held-out data of the run's own kind: its own, or other data.

    Raises:
        ConfigError: if the run has no export, or the data cannot be read.
    """
    export = export_of(folder)
    run = run_of(folder)
    if run is None:
        problem = "is no model fine-tuned on text, and belongs to no run that says how its data are read"
        raise ConfigError("RUN_OR_FOLDER", str(folder), problem, "name a run directory")
    config = load(run / "config.yaml", () if data is None else _reading(run, export, data), quiet=True)
    last = phases(config)[-1]
    dataset: Dataset = last.data.load()
    with for_checkpoint():
        task = models.build(last.model, dataset)
    task.prepare_evaluation(last.evaluate)
    # Into the model of the task, which has hooks.
    trained = type(task.model).from_pretrained(export, use_safetensors=True, dtype=torch.float32)
    task.model.load_state_dict(trained.state_dict())
    results = _measured(task, dataset, dataset.validation, dataset.score, batch, device)
    for index, (name, samples) in enumerate(dataset.held_out.items()):
        of_set = results
        if index:
            of_set = _measured(task, dataset, samples, dataset.set_scores.get(name), batch, device)
        results.scores.update(of_set_named(name, of_set.scores))
    return results


def _reading(run: Path, export: Path, data: str) -> list[str]:
    """Overrides by which other held-out data are read, with the model's own tokenizer: one that is made anew would number other words."""
    of_run = load(run / "config.yaml", quiet=True).data
    overrides = [f"data.validation={data}"]
    if isinstance(of_run, PlainText) and of_run.tokenizer in of_run.trained:
        overrides.append(f"data.tokenizer={export.resolve()}")
        overrides += ["data.words=whitespace"] if isinstance(of_run, TokenStreamData) else []
    return overrides


def _measured(task: Task, dataset: Dataset, samples: Any, score: Scorer | None, batch: int, device: str) -> Results:
    """Of one set of held-out data."""
    if isinstance(task, LanguageModelling):
        return _of_streams(task, samples, batch, device)
    losses, predictions = outputs(task, samples, batch, device)
    found = {"loss": float(losses.mean())}
    by_class: dict[str, dict[str, float]] = {}
    if score is None:  # the predictions are whether each sample is right
        found["accuracy"] = float(predictions.mean())
    else:
        found |= score(predictions, np.arange(len(losses)))
    if isinstance(task, SequenceClassification) and dataset.labels is not None:
        found["accuracy"] = float((predictions.argmax(axis=1) == samples.labels).mean())
        by_class = scores.by_class(dataset.labels, predictions.argmax(axis=1), samples.labels)
    return Results({**found, "examples": len(losses)}, by_class)


@torch.no_grad()
def _of_streams(task: LanguageModelling, samples: Any, batch: int, device: str) -> Results:
    """Means over the tokens of parallel streams, of which a last window counts by its length."""
    task.to(device).eval()
    means = HeldOutMeans(len(task.further_losses), torch.device(device))
    for inputs in evaluation_batches(
        samples, limit=None, micro=batch, rank=0, world_size=1, workers=0, device=torch.device(device)
    ):
        means.add(inputs.pop("weight"), task(**inputs))
    return Results(means.results(task.results), {})
