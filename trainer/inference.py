"""A trained model without an engine, in one process: its loss, its scores and its predictions on labelled or unlabelled data."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor

from bellwether.trainer import models, scores
from bellwether.trainer.config import ConfigError, load, phases
from bellwether.trainer.data import Dataset, Samples, labelled_rows, labelled_samples, text_sources, tokenizer
from bellwether.trainer.data.labelled_rows import LabelledRows
from bellwether.trainer.data.labelled_text import LabelledText
from bellwether.trainer.data.labels import Classes, Numbers, classes_of
from bellwether.trainer.data.loader import evaluation_batches
from bellwether.trainer.data.text_sources import TextSource
from bellwether.trainer.models.architecture import for_checkpoint
from bellwether.trainer.models.tasks import SequenceClassification, Task

log = logging.getLogger(__name__)


@dataclass
class Results:
    """What a model makes of held-out data.

    Attributes:
        scores: loss and scores by name; ``examples``.
        classes: precision, recall, F1 and number of examples of each class; empty for other tasks than classification.
    """

    scores: dict[str, float]
    classes: dict[str, dict[str, float]]


@dataclass
class Classifier:
    """A sequence classifier with its tokenizer, and how it reads its data.

    Attributes:
        names: its classes; None for a regression.
    """

    folder: Path
    config: LabelledText
    task: Task
    words: Any
    names: list[str] | None

    @classmethod
    def load(cls, folder: Path, data: str, **columns: Any) -> Classifier:
        """A run with an export, or a folder with a model.

        Args:
            columns: keys of `LabelledText` that take precedence over those of the run.

        Raises:
            ConfigError: if the folder holds no sequence classifier with safetensors.
        """
        export, keys = _export_of(folder)
        if not is_classifier(folder):
            raise ConfigError("RUN_OR_FOLDER", str(folder), "holds no sequence classifier", "name one")
        config = LabelledText.model_validate(
            {**keys, **columns, "kind": "labelled-text", "source": data, "validation": None, "tokenizer": str(export)}
        )
        words = tokenizer.given(config)
        transformers.utils.logging.disable_progress_bar()
        try:
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                export, use_safetensors=True, dtype=torch.float32
            )
        except Exception as error:
            problem = f"transformers cannot load it: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise ConfigError(
                "RUN_OR_FOLDER", str(folder), problem, "name a folder with config.json and model.safetensors"
            ) from error
        names = (
            None if model.config.num_labels == 1 else [model.config.id2label[i] for i in range(model.config.num_labels)]
        )
        config = config.model_copy(update={"task": "regression" if names is None else "classification"})
        return cls(export, config, SequenceClassification(model), words, names)

    def results(self, batch: int, device: str) -> Results:
        """Loss and scores on labelled rows.

        Raises:
            ConfigError: if the rows cannot be read, or a label is no class of the model.
        """
        rows = labelled_rows.read(self.config, self._source())
        losses, predictions, labels = self._run(rows, self._labels(rows), batch, device)
        found = {"loss": float(losses.mean()), **scores.score(self.names, predictions, labels)}
        if self.names is None:
            return Results({**found, "examples": len(labels)}, {})
        accuracy = float((predictions.argmax(axis=1) == labels).mean())
        by_class = scores.by_class(self.names, predictions.argmax(axis=1), labels)
        return Results({**found, "accuracy": accuracy, "examples": len(labels)}, by_class)

    def predictions(self, batch: int, device: str) -> Iterator[dict[str, Any]]:
        """Each row with ``prediction``, and for classes with the ``probability`` of the predicted one."""
        rows = labelled_rows.read(self.config, self._source(), labelled=False)
        _, predictions, _ = self._run(rows, None, batch, device)
        for texts, predicted in zip(rows.texts, predictions, strict=True):
            row = dict(zip(self.config.text_columns, texts, strict=True))
            if self.names is None:
                yield {**row, "prediction": float(predicted)}
            else:
                probabilities = np.exp(predicted - predicted.max())
                best = int(predicted.argmax())
                yield {
                    **row,
                    "prediction": self.names[best],
                    "probability": float(probabilities[best] / probabilities.sum()),
                }

    def _source(self) -> TextSource:
        return text_sources.locate(self.config, "data.source", self.config.source)

    def _labels(self, rows: LabelledRows) -> Classes | Numbers:
        """How the labels of the rows name the model's classes: by name, or else by number."""
        column = self.config.label_column
        if self.names is None:
            return Numbers(column)
        found = classes_of(rows.labels, rows.named, self.config, fewest=1)
        assert isinstance(found, Classes)
        if found.order is not None:
            # The file has an order of its own.
            if unknown := [name for name in found.names if name not in self.names]:
                problem = f"the file has the class {unknown[0]!r}, and the model {', '.join(self.names[:10])}"
                raise ConfigError("data.label_column", column, problem, "name data with the classes of the model")
            return Classes(column, self.names, order=[self.names.index(name) for name in found.names])
        numbers = [str(i) for i in range(len(self.names))]
        if not set(found.names) <= set(self.names) and set(found.names) <= set(numbers):
            log.info(
                "labels are taken as the numbers of classes: %s",
                ", ".join(f"{i} {n}" for i, n in enumerate(self.names)),
            )
            return Classes(column, numbers)
        return Classes(column, self.names)

    def _run(
        self, rows: LabelledRows, labels: Classes | Numbers | None, batch: int, device: str
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """Losses [N], predictions [N, ...] and labels [N] of all rows."""
        with tempfile.TemporaryDirectory(prefix="bellwether-") as temporary:
            labelled_samples.write(self.config, self.words, rows, labels, Path(temporary), "rows")
            for found in rows.summary.findings:
                log.warning("%s", found)
            if rows.summary.unknown_share > self.config.max_unknown:
                log.warning(
                    "%.1f%% of the tokens are [UNK]: the model's tokenizer does not know this text",
                    100 * rows.summary.unknown_share,
                )
            samples = labelled_samples.samples(self.config, self.words, Path(temporary), "rows")
            return (*outputs(self.task, samples, batch, device), np.array(samples.labels))


@torch.no_grad()
def outputs(task: Task, samples: Samples, batch: int, device: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Losses [N] and predictions [N, ...] of a task on all samples."""
    task.to(device).eval()
    losses: list[Tensor] = []
    predictions: list[Tensor] = []
    for inputs in evaluation_batches(
        samples, limit=None, micro=min(batch, len(samples)), rank=0, world_size=1, workers=0
    ):
        del inputs["weight"]
        loss, correct, *predicted = task(**{name: tensor.to(device) for name, tensor in inputs.items()})
        losses.append(loss.cpu())
        predictions.append((predicted[0] if predicted else correct).cpu())
    return torch.cat(losses).numpy()[: len(samples)], torch.cat(predictions).numpy()[: len(samples)]


def results_of_run(folder: Path, data: str | None, batch: int, device: str) -> Results:
    """Loss and accuracy of a run's export on held-out data of the run's own kind: its own, or other data.

    Raises:
        ConfigError: if the run has no export, or the data cannot be read.
    """
    export, _ = _export_of(folder)
    run = _run_of(folder)
    if run is None:
        problem = "is no sequence classifier, and belongs to no run that says how its data are read"
        raise ConfigError("RUN_OR_FOLDER", str(folder), problem, "name a run directory")
    config = load(run / "config.yaml", () if data is None else (f"data.validation={data}",), quiet=True)
    last = phases(config)[-1]
    dataset: Dataset = last.data.load()
    with for_checkpoint():
        task = models.build(last.model, dataset)
    # Into the model of the task, which has hooks.
    trained = type(task.model).from_pretrained(export, use_safetensors=True, dtype=torch.float32)
    task.model.load_state_dict(trained.state_dict())
    losses, predictions = outputs(task, dataset.validation, batch, device)
    found = {"loss": float(losses.mean())}
    by_class: dict[str, dict[str, float]] = {}
    if dataset.score is None:  # the predictions are whether each sample is right
        found["accuracy"] = float(predictions.mean())
    else:
        found |= dataset.score(predictions, np.arange(len(losses)))
    if isinstance(task, SequenceClassification) and dataset.labels is not None:
        samples: Any = dataset.validation
        found["accuracy"] = float((predictions.argmax(axis=1) == samples.labels).mean())
        by_class = scores.by_class(dataset.labels, predictions.argmax(axis=1), samples.labels)
    return Results({**found, "examples": len(losses)}, by_class)


def held_out_of(folder: Path) -> str | None:
    """The held-out file of a run's data; None if the run holds out a share of its training data.

    Raises:
        ConfigError: if the folder belongs to no run.
    """
    run = _run_of(folder)
    if run is None:
        raise ConfigError("RUN_OR_FOLDER", str(folder), "belongs to no run", "name labelled data: --data FILE")
    held_out = load(run / "config.yaml", quiet=True).data.validation
    return held_out if isinstance(held_out, str) else None


def is_classifier(folder: Path) -> bool:
    """Whether a run or folder holds a sequence classifier."""
    try:
        content = json.loads((_export_of(folder)[0] / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return any(name.endswith("ForSequenceClassification") for name in content.get("architectures") or ())


def _export_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder with the model, and the ``data`` section of its run, if it is one of labelled text.

    Raises:
        ConfigError: if there is no model.
    """
    run = _run_of(folder)
    export = folder / "export" if (folder / "export" / "config.json").is_file() else folder
    if not (export / "config.json").is_file():
        problem = (
            "has no export"
            if (folder / "config.yaml").is_file()
            else "no such folder"
            if not folder.is_dir()
            else "holds no model"
        )
        raise ConfigError(
            "RUN_OR_FOLDER",
            str(folder),
            problem,
            "name a finished run, its export, or a folder that save_pretrained wrote",
        )
    if run is None:
        return export, {}
    data = load(run / "config.yaml", quiet=True).data
    if not isinstance(data, LabelledText):
        return export, {}
    kept = (
        "text_columns",
        "label_column",
        "column_names",
        "encoding",
        "sequence_length",
        "lowercase",
        "cache",
        "max_unknown",
    )
    return export, {key: getattr(data, key) for key in kept}


def _run_of(folder: Path) -> Path | None:
    """The run that a folder is, or whose export it is."""
    paths = (folder, folder.parent)
    return next((path for path in paths if (path / "config.yaml").is_file() and (path / "export").is_dir()), None)
