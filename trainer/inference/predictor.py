"""What all predictors have in common: the model, its tokenizer, how data are read, and batches in one process."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch import Tensor

from bellwether.trainer.config import ConfigError
from bellwether.trainer.data import Samples, text_sources, tokenizer
from bellwether.trainer.data.loader import evaluation_batches
from bellwether.trainer.data.summary import UNREADABLE, SourceSummary
from bellwether.trainer.data.text_sources import TextSource
from bellwether.trainer.data.tokenized import TokenizedData
from bellwether.trainer.inference.exported import export_of, keys_of_run, load_model
from bellwether.trainer.models.architecture import longest_sequence
from bellwether.trainer.models.tasks import Task

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
class Predictor(ABC):
    """A fine-tuned model with its tokenizer, and how it reads its data.

    Attributes:
        architecture: what the names of its models end with.
        kept: keys of the run's ``data`` that say how other data are read.
    """

    architecture: ClassVar[str]
    data_config: ClassVar[type[TokenizedData]]
    kept: ClassVar[tuple[str, ...]]
    common: ClassVar[tuple[str, ...]] = (
        "column_names", "encoding", "sequence_length", "lowercase", "cache", "max_unknown", "on_error",
    )  # fmt: skip

    config: Any
    task: Task
    words: Any

    @classmethod
    def load(cls, folder: Path, data: str, **options: Any) -> Predictor:
        """Of a run with an export, or a folder with a model.

        Args:
            data: the file to read, or a folder or glob of them.
            options: ``text_columns``, ``label_column`` and ``sequence_length``, which take precedence over those of the run.

        Raises:
            ConfigError: if the model cannot be loaded, its task does not have an option, or it has no positions for ``sequence_length``.
        """
        export = export_of(folder)
        model = load_model(folder, export, f"AutoModel{cls.architecture}")
        (kind,) = cls.data_config.model_fields["kind"].annotation.__args__  # type: ignore[union-attr]
        of_run = keys_of_run(folder, kind, (*cls.common, *cls.kept))
        keys = cls.keys(_fitting(model, options, of_run, cls.data_config), of_run)
        section = {**keys, "kind": kind, "source": data, "validation": None, "tokenizer": str(export)}
        try:
            config = cls.data_config.model_validate(section)
        except ValidationError as error:
            problem = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ConfigError("RUN_OR_FOLDER", str(folder), problem, "give other options") from error
        return cls.of(config, model, tokenizer.given(config))

    @classmethod
    @abstractmethod
    def keys(cls, options: Mapping[str, Any], of_run: Mapping[str, Any]) -> dict[str, Any]:
        """Keys of `data_config`: those of the run, and the options, which take precedence."""

    @classmethod
    @abstractmethod
    def of(cls, config: Any, model: Any, words: Any) -> Predictor:
        """With a model that was loaded."""

    @abstractmethod
    def results(self, batch: int, device: str) -> Results:
        """Loss and scores on labelled rows.

        Raises:
            ConfigError: if the rows cannot be read, or a label is no class of the model.
        """

    @abstractmethod
    def predictions(self, batch: int, device: str) -> Iterator[dict[str, Any]]:
        """A row for each one of the data, in order, with its ``prediction``.

        Raises:
            ConfigError: if a row cannot be read.
        """

    def source(self) -> TextSource:
        return text_sources.locate(self.config, "data.source", self.config.source)

    def check(self, summary: SourceSummary) -> None:
        """Say what was noticed about the data.

        Raises:
            ConfigError: naming the first row that cannot be read, without ``data.on_error: skip`` in the run.
        """
        unreadable = next((found for found in summary.findings if found.what == UNREADABLE), None)
        if unreadable is not None and self.config.on_error == "refuse":
            of_all = f", the first of {unreadable.count:,} such rows" if unreadable.count > 1 else ""
            raise ConfigError("--data", self.config.source, f"{unreadable.examples[0]}{of_all}", "repair or remove it")
        for found in summary.findings:
            log.warning("%s", found)
        if summary.unknown_share > self.config.max_unknown:
            share = 100 * summary.unknown_share
            log.warning("%.1f%% of the tokens are [UNK]: the model's tokenizer does not know this text", share)


def _fitting(
    model: Any, options: dict[str, Any], of_run: Mapping[str, Any], data_config: type[TokenizedData]
) -> dict[str, Any]:
    """The options, with the longest ``sequence_length`` of the model where the usual one is longer."""
    longest = longest_sequence(model.config.to_dict())
    asked = options.get("sequence_length")
    length = asked or of_run.get("sequence_length") or data_config.model_fields["sequence_length"].default
    if longest is None or length <= longest:
        return options
    if asked is not None:
        problem = f"the model has positions for {longest:,} tokens"
        raise ConfigError("--sequence-length", asked, problem, "write this number or a smaller one, or leave it out")
    log.info("sequences have %d tokens, for which the model has positions", longest)
    return {**options, "sequence_length": longest}


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
