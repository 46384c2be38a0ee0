"""Questions in windows of their texts: where each answer begins and ends, and from predicted spans to scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bellwether.trainer import scores
from bellwether.trainer.data import Dataset, labelled_preparation, questions
from bellwether.trainer.data.corpus import content_hash
from bellwether.trainer.data.labelled_preparation import Sources
from bellwether.trainer.data.labelled_samples import LabelledSamples
from bellwether.trainer.data.questions import Question
from bellwether.trainer.data.sources import split
from bellwether.trainer.data.summary import DataSummary, SourceSummary

if TYPE_CHECKING:
    from bellwether.trainer.data import Scorer
    from bellwether.trainer.data.question_answering import QuestionAnswering

_REVISION = 3
_QUESTIONS = 500  # tokenized at a time


@dataclass
class QuestionSamples(LabelledSamples):
    """Windows. See `LabelledSamples`; in addition ``context`` int64 [B, L], 1 for the tokens of the text, and ``labels`` int64 [B, 2],
    the first and the last token of the answer, both 0 (the first token) where the window does not hold it.

    Attributes:
        max_answer: the longest answer that is predicted, in tokens.
        may_be_empty: of training samples, whether there are questions without an answer.
    """

    max_answer: int = 30
    may_be_empty: bool = False

    def batch(
        self, indices: Sequence[int] | npt.NDArray[np.int64], keys: Sequence[int] | npt.NDArray[np.int64]
    ) -> dict[str, Tensor]:
        rows = np.asarray(indices, dtype=np.int64)
        where, real = self.positions(rows)
        context = (real & (self.spans[where, 0] >= 0)).astype(np.int64)
        return {
            **self.inputs(where, real), "context": torch.from_numpy(context), "labels": torch.from_numpy(self.labels[rows]),
        }  # fmt: skip

    @property
    def spans(self) -> npt.NDArray[np.int32]:
        """First character in the text, and the one after the last, of each token of the stream; -1 for other tokens."""
        return self._array("spans")

    @property
    def questions(self) -> npt.NDArray[np.int64]:
        """The question of each window."""
        return self._array("questions")

    def answer(self, window: int, first: int, last: int) -> tuple[int, int]:
        """The characters of the text that tokens of a window are."""
        begin = self._array("ends")[window] - self.lengths[window]
        return int(self.spans[begin + first, 0]), int(self.spans[begin + last, 1])


def prepare(config: QuestionAnswering) -> dict[str, Any]:
    """Prepares questions. See `bellwether.trainer.data.labelled_preparation.prepare`."""
    key = {"revision": _REVISION, "stride": config.stride}
    return labelled_preparation.prepare(config, "questions", key, lambda *given: _prepare(config, *given))


def open_prepared(config: QuestionAnswering, facts: dict[str, Any]) -> Dataset:
    """What `prepare` has prepared."""
    entry, words, summary = labelled_preparation.opened(facts)
    train = samples(config, words, entry, "train")
    train.may_be_empty = questions.may_be_empty(DataSummary.read(entry).source)
    parts = labelled_preparation.held_out_parts(config)
    return labelled_preparation.dataset(
        config, train, {name: samples(config, words, entry, part) for name, part in parts.items()}, lambda part: _scorer(part, entry),
        vocabulary_size=len(words), tokenizer=words, fingerprint=entry.name, summary=summary,
    )  # fmt: skip


def samples(config: QuestionAnswering, words: Any, folder: Path, part: str) -> QuestionSamples:
    """The windows that `write` has written."""
    has_types = (folder / f"{part}-types.bin").exists()
    return QuestionSamples(
        folder, part, config.sequence_length, words.pad_token_id or 0, has_types, max_answer=config.max_answer
    )


@dataclass(frozen=True)
class Answer:
    """The best span of a question over its windows.

    Attributes:
        begin, end: where it is in the text, in characters.
        score: the sum of the logits of its first and its last token; -inf: no window holds a part of the text.
        probability: the product of the probabilities of these, among the tokens of the text in the window, and the first token of the
            window, which stands for no answer.
        no_answer_score: the sum of the logits of that token, in the window where it is lowest.
    """

    begin: int
    end: int
    score: float
    probability: float
    no_answer_score: float

    def text(self, context: str, may_be_empty: bool) -> str:
        """The answer; "" if it may be empty and the score of none is higher."""
        is_empty = self.score == -np.inf or (may_be_empty and self.no_answer_score > self.score)
        return "" if is_empty else context[self.begin : self.end]


def answers(
    samples: QuestionSamples, predictions: npt.NDArray[Any], rows: npt.NDArray[np.int64], count: int
) -> dict[int, Answer]:
    """The answer of each question all windows of which are among ``rows``.

    Args:
        predictions: of `bellwether.trainer.models.tasks.QuestionAnswering`, for these rows.
        count: number of questions.
    """
    asked = samples.questions[rows]
    is_whole = np.bincount(asked, minlength=count) == np.bincount(samples.questions, minlength=count)
    found = {}
    for question in np.flatnonzero(is_whole & (np.bincount(asked, minlength=count) > 0)).tolist():
        windows = np.flatnonzero(asked == question)
        best = windows[predictions[windows, 2].argmax()]
        first, last, score, _, of_all = predictions[best].tolist()
        begin, end = samples.answer(int(rows[best]), int(first), int(last))
        found[question] = Answer(begin, end, score, float(np.exp(score - of_all)), float(predictions[windows, 3].min()))
    return found


def _asked(part: str) -> str:
    """Name of the file with the questions of a part of held-out data."""
    return "questions.json" if part == "validation" else f"questions-{part}.json"


def _scorer(samples: QuestionSamples, folder: Path) -> Scorer:
    """Scores of the best span of each question over its windows.

    Questions of which ``evaluate.limit`` leaves windows out do not count.
    """

    def score(predictions: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> dict[str, float]:
        asked = json.loads((folder / _asked(samples.part)).read_text(encoding="utf-8"))
        may_be_empty = any(not each["answers"] for each in asked)
        found = answers(samples, predictions, rows, len(asked))
        return scores.answers(
            [(answer.text(asked[i]["context"], may_be_empty), asked[i]["answers"]) for i, answer in found.items()]
        )

    return score


def _prepare(config: QuestionAnswering, words: Any, sources: Sources, folder: Path) -> None:
    summary = DataSummary("question-answering", config.source)
    train = questions.read(config, sources["data.source"], summary.source)
    held_out = {}
    for name, key, _ in config.held_out_keys():
        of_set = summary.held_out[name] = SourceSummary()
        held_out[name] = questions.read(config, sources[key], of_set)
    if not held_out:
        chosen = split(len(train), config)
        train, held_out["validation"] = ([train[i] for i in part] for part in chosen)
    write(config, words, train, folder, "train", summary.source)
    for name, part in labelled_preparation.held_out_parts(config).items():
        write(config, words, held_out[name], folder, part, summary.held_out.get(name, summary.source))
        asked = [{"context": each.context, "answers": each.answers} for each in held_out[name]]
        (folder / _asked(part)).write_text(json.dumps(asked), encoding="utf-8")
    summary.count_rows(_hashes(train), {name: _hashes(each) for name, each in held_out.items()})
    summary.write(folder)


def _hashes(asked: list[Question]) -> npt.NDArray[np.uint64]:
    return np.array([content_hash(f"{each.question}\t{each.context}") for each in asked], np.uint64)


def write(
    config: QuestionAnswering, words: Any, asked: list[Question], folder: Path, part: str, summary: SourceSummary
) -> None:
    """Tokenize questions in windows, into files of a folder. Adds tokens and lost answers to the summary."""
    labels: list[tuple[int, int]] = []
    of_question: list[int] = []
    spans: list[npt.NDArray[np.int32]] = []
    found: set[int] = set()
    with labelled_preparation.TokenWriter(folder, part, summary, words.unk_token_id) as writer:
        for begin in range(0, len(asked), _QUESTIONS):
            chosen = asked[begin : begin + _QUESTIONS]
            # A question of any length must leave room for the text.
            encoded = words(
                [_cut(words, q.question, config.sequence_length // 2) for q in chosen], [q.context for q in chosen],
                truncation="only_second", max_length=config.sequence_length, stride=config.stride,
                return_overflowing_tokens=True, return_offsets_mapping=True,
            )  # fmt: skip
            writer.write(encoded)
            for window in range(len(encoded["input_ids"])):
                question = encoded["overflow_to_sample_mapping"][window]
                is_text = [number == 1 for number in encoded.sequence_ids(window)]
                offsets = np.where(np.array(is_text)[:, None], np.array(encoded["offset_mapping"][window]), -1).astype(
                    np.int32
                )
                label = _label(chosen[question], offsets)
                if label != (0, 0):
                    found.add(begin + question)
                labels.append(label)
                spans.append(offsets)
                of_question.append(begin + question)
    lost = [question for index, question in enumerate(asked) if question.answers and index not in found]
    for each in lost:
        summary.note("answers that no window holds as a whole", "trained on as if there were none", each.place)
    np.save(folder / f"{part}-labels.npy", np.array(labels, dtype=np.int64))
    np.save(folder / f"{part}-questions.npy", np.array(of_question, dtype=np.int64))
    np.save(folder / f"{part}-spans.npy", np.concatenate(spans))


def _cut(words: Any, question: str, length: int) -> str:
    """The question, or its first ``length`` tokens."""
    offsets = words(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return question if len(offsets) <= length else question[: offsets[length - 1][1]]


def _label(question: Question, spans: npt.NDArray[np.int32]) -> tuple[int, int]:
    """The first and the last token of the answer in a window, or (0, 0)."""
    if not question.answers:
        return 0, 0
    begin, end = question.start, question.start + len(question.answers[0])
    inside = np.flatnonzero((spans[:, 0] >= 0) & (spans[:, 1] > begin) & (spans[:, 0] < end))
    if not len(inside) or spans[inside[0], 0] > begin or spans[inside[-1], 1] < end:
        return 0, 0
    return int(inside[0]), int(inside[-1])
