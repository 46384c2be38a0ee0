"""Predictions of question answering models: the part of a text that answers a question."""

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
from bellwether.trainer.data import question_samples
from bellwether.trainer.data import questions as reading
from bellwether.trainer.data.question_answering import QuestionAnswering
from bellwether.trainer.data.question_samples import QuestionSamples
from bellwether.trainer.data.questions import Question
from bellwether.trainer.data.summary import SourceSummary
from bellwether.trainer.inference.predictor import Predictor, Results, outputs
from bellwether.trainer.models import question_answering, tasks

log = logging.getLogger(__name__)


@dataclass
class QuestionAnswerer(Predictor):
    """A question answering model. See `Predictor`.

    Attributes:
        may_be_empty: whether it was trained on questions without an answer.
    """

    architecture: ClassVar[str] = "ForQuestionAnswering"
    data_config: ClassVar[type[QuestionAnswering]] = QuestionAnswering
    kept: ClassVar[tuple[str, ...]] = ("stride", "max_answer")

    may_be_empty: bool = False

    @classmethod
    def keys(cls, options: Mapping[str, Any], of_run: Mapping[str, Any]) -> dict[str, Any]:
        for option in ("text_columns", "label_column"):
            if option in options:
                problem = "a question answering model reads the columns question, context and answers"
                raise ConfigError(f"--{option.replace('_', '-')}", options[option], problem, "leave it out")
        keys = {**of_run, **options}
        if "sequence_length" in options:  # at most half of a shorter window can be shared
            usual = QuestionAnswering.model_fields["stride"].default
            keys["stride"] = min(keys.get("stride", usual), options["sequence_length"] // 2)
        return keys

    @classmethod
    def of(cls, config: Any, model: Any, words: Any) -> QuestionAnswerer:
        known = getattr(model.config, question_answering.MAY_BE_EMPTY, None)
        return cls(config, tasks.QuestionAnswering(model, config.max_answer), words, bool(known))

    def results(self, batch: int, device: str) -> Results:
        """As `Predictor.results`. Loss and examples are those of windows, as in training."""
        summary = SourceSummary()
        asked = reading.read(self.config, self.source(), summary)
        with tempfile.TemporaryDirectory(prefix="bellwether-") as temporary:
            samples, losses, predictions = self._run(asked, summary, Path(temporary), batch, device)
            answers = question_samples.answers(samples, predictions, np.arange(len(losses)), len(asked))
        may_be_empty = any(not each.answers for each in asked)
        pairs = [(answers[i].text(each.context, may_be_empty), each.answers) for i, each in enumerate(asked)]
        return Results({"loss": float(losses.mean()), **scores.answers(pairs), "examples": len(losses)}, {})

    def predictions(self, batch: int, device: str) -> Iterator[dict[str, Any]]:
        """For each question, besides its ``id`` and ``question``: ``prediction``, the answer; ``start`` and ``end``, where in the text it
        is; ``score`` and ``probability``, see `bellwether.trainer.data.question_samples.Answer`.

        Where the model was trained on questions without an answer, also ``no_answer_score``: if it is higher, ``prediction`` is empty,
        and there is no ``start`` and ``end``.
        """
        summary = SourceSummary()
        asked = reading.read(self.config, self.source(), summary, labelled=False)
        with tempfile.TemporaryDirectory(prefix="bellwether-") as temporary:
            samples, losses, predictions = self._run(asked, summary, Path(temporary), batch, device)
            answers = question_samples.answers(samples, predictions, np.arange(len(losses)), len(asked))
        have_ids = any(each.id is not None for each in asked)
        for each, answer in zip(asked, (answers[i] for i in range(len(asked))), strict=True):
            text = answer.text(each.context, self.may_be_empty)
            found = {
                **({"id": each.id} if have_ids else {}), "question": each.question, "prediction": text,
                "start": answer.begin if text else None, "end": answer.end if text else None,
                "score": answer.score, "probability": answer.probability,
            }  # fmt: skip
            yield {**found, "no_answer_score": answer.no_answer_score} if self.may_be_empty else found

    def _run(
        self, asked: list[Question], summary: SourceSummary, folder: Path, batch: int, device: str
    ) -> tuple[QuestionSamples, npt.NDArray[Any], npt.NDArray[Any]]:
        """Windows, and losses [N] and predictions [N, ...] of them."""
        question_samples.write(self.config, self.words, asked, folder, "rows", summary)
        self.check(summary)
        samples = question_samples.samples(self.config, self.words, folder, "rows")
        return (samples, *outputs(self.task, samples, batch, device))
