"""Predictions of sequence classifiers: a class, or a number, for a text or a pair."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bellwether.trainer import scores
from bellwether.trainer.config import ConfigError
from bellwether.trainer.data import labelled_rows, labelled_samples
from bellwether.trainer.data.labelled_rows import LabelledRows
from bellwether.trainer.data.labelled_text import LabelledText
from bellwether.trainer.data.labels import Classes, Numbers, classes_of
from bellwether.trainer.inference.predictor import Predictor, Results, outputs
from bellwether.trainer.models.tasks import SequenceClassification

log = logging.getLogger(__name__)


@dataclass
class TextClassifier(Predictor):
    """A sequence classifier. See `Predictor`.

    Attributes:
        names: its classes; None for a regression.
    """

    architecture: ClassVar[str] = "ForSequenceClassification"
    data_config: ClassVar[type[LabelledText]] = LabelledText
    kept: ClassVar[tuple[str, ...]] = ("text_columns", "label_column")

    names: list[str] | None = None

    @classmethod
    def keys(cls, options: Mapping[str, Any], of_run: Mapping[str, Any]) -> dict[str, Any]:
        return {**of_run, **options}

    @classmethod
    def of(cls, config: Any, model: Any, words: Any) -> TextClassifier:
        count = model.config.num_labels
        names = None if count == 1 else [model.config.id2label[i] for i in range(count)]
        config = config.model_copy(update={"task": "regression" if names is None else "classification"})
        return cls(config, SequenceClassification(model), words, names)

    def results(self, batch: int, device: str) -> Results:
        rows = labelled_rows.read(self.config, self.source())
        losses, predictions, labels = self._run(rows, self._labels(rows), batch, device)
        found = {"loss": float(losses.mean()), **scores.score(self.names, predictions, labels)}
        if self.names is None:
            return Results({**found, "examples": len(labels)}, {})
        accuracy = float((predictions.argmax(axis=1) == labels).mean())
        by_class = scores.by_class(self.names, predictions.argmax(axis=1), labels)
        return Results({**found, "accuracy": accuracy, "examples": len(labels)}, by_class)

    def predictions(self, batch: int, device: str) -> Iterator[dict[str, Any]]:
        """Each row with ``prediction``, and for classes with the ``probability`` of the predicted one."""
        rows = labelled_rows.read(self.config, self.source(), labelled=False)
        _, predictions, _ = self._run(rows, None, batch, device)
        for texts, predicted in zip(rows.texts, predictions, strict=True):
            row = dict(zip(self.config.text_columns, texts, strict=True))
            if self.names is None:
                yield {**row, "prediction": float(predicted)}
            else:
                probabilities = np.exp(predicted - predicted.max())
                best = int(predicted.argmax())
                probability = float(probabilities[best] / probabilities.sum())
                yield {**row, "prediction": self.names[best], "probability": probability}

    def _labels(self, rows: LabelledRows) -> Classes | Numbers:
        """How the labels of the rows name the model's classes: by name, or else by number."""
        column = self.config.label_column
        if self.names is None:
            return Numbers(column)
        found = classes_of(rows.labels, rows.named, self.config, fewest=1)
        assert isinstance(found, Classes)
        return of_model(found, self.names)

    def _run(
        self, rows: LabelledRows, labels: Classes | Numbers | None, batch: int, device: str
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """Losses [N], predictions [N, ...] and labels [N] of all rows."""
        with tempfile.TemporaryDirectory(prefix="bellwether-") as temporary:
            labelled_samples.write(self.config, self.words, rows, labels, Path(temporary), "rows")
            self.check(rows.summary)
            samples = labelled_samples.samples(self.config, self.words, Path(temporary), "rows")
            return (*outputs(self.task, samples, batch, device), np.array(samples.labels))


def of_model(found: Classes, names: list[str]) -> Classes:
    """How the classes of a file name those of a model: by name, or else by number.

    Raises:
        ConfigError: if the file has an order of its own, and a class that the model does not have.
    """
    if found.order is not None:
        if unknown := [name for name in found.names if name not in names]:
            problem = f"the file has the class {unknown[0]!r}, and the model {', '.join(names[:10])}"
            raise ConfigError("data.label_column", found.column, problem, "name data with the classes of the model")
        return Classes(found.column, names, order=[names.index(name) for name in found.names])
    numbers = [str(i) for i in range(len(names))]
    if not set(found.names) <= set(names) and set(found.names) <= set(numbers):
        of_number = ", ".join(f"{i} {n}" for i, n in enumerate(names))
        log.info("labels are taken as the numbers of classes: %s", of_number)
        return Classes(found.column, numbers)
    return Classes(found.column, names)
