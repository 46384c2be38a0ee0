"""Reads questions: the nested files of SQuAD, and rows with ``question``, ``context`` and ``answers``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import formats, rows
from bellwether.trainer.data.formats import json_rows
from bellwether.trainer.data.summary import SourceSummary
from bellwether.trainer.data.text_sources import TextSource

if TYPE_CHECKING:
    from bellwether.trainer.data.question_answering import QuestionAnswering

_COLUMNS = ("question", "context", "answers")
_WITHOUT = "questions without an answer in their text"


@dataclass(frozen=True)
class Question:
    """A question about a text.

    Attributes:
        answers: texts that are right; none if the text does not answer it.
        start: where the first of them begins in the context; -1 without answers.
        id: as it was read; None where it has none.
    """

    question: str
    context: str
    answers: list[str]
    start: int
    place: str
    id: str | None = None


def read(
    config: QuestionAnswering, source: TextSource, summary: SourceSummary, labelled: bool = True
) -> list[Question]:
    """The questions of a source.

    Args:
        labelled: whether they have answers; if not, answers are not read.

    Raises:
        ConfigError: if it cannot be read, or has no questions.
    """
    found = []
    for place, row in _rows(config, source, summary, _COLUMNS if labelled else _COLUMNS[:2]):
        question = _question(row, place, summary, labelled)
        if question is not None:
            summary.rows += 1
            summary.documents += 1
            found.append(question)
    if not found:
        advice = summary.first_left_out("name a file of SQuAD, or rows with question, context and answers")
        raise ConfigError(source.key, source.name, "has no questions", advice)
    lengths = [len(question.context) for question in found]
    summary.longest, summary.shortest = max(lengths), min(lengths)
    if labelled and (without := sum(not question.answers for question in found)):
        summary.note(_WITHOUT, "the answer is to be empty, as in SQuAD 2.0", count=without)
    return found


def may_be_empty(summary: SourceSummary) -> bool:
    """Whether questions without an answer were among those that `read` read."""
    return any(found.what == _WITHOUT for found in summary.findings)


def _rows(
    config: QuestionAnswering, source: TextSource, summary: SourceSummary, columns: Sequence[str]
) -> Iterator[rows.Row]:
    if source.rows is not None or source.files[0][1].name != "json":
        yield from rows.read(config, source, columns, summary, optional=["id"])
        return
    for file, form in source.files:
        if form.name != "json":
            raise ConfigError(
                source.key,
                source.name,
                f"{file} is no .json or .jsonl file as the others are",
                "name one kind of files",
            )
        try:
            for place, row in json_rows.rows(file, formats.Options("data", config.encoding), summary):
                yield from _nested(place, row, summary)
        except formats.Unreadable as error:
            raise source.unreadable(error) from error


def _nested(place: str, row: Any, summary: SourceSummary) -> Iterator[rows.Row]:
    """The questions of an article of SQuAD; a row that is none, as it is."""
    row = row["data"] if isinstance(row, dict) and isinstance(row.get("data"), dict) else row
    if not isinstance(row, dict):
        summary.unreadable(f"{place}: holds {type(row).__name__}, not an object")
    elif "paragraphs" in row:
        for number, paragraph in enumerate(_objects(row["paragraphs"], place, "paragraphs", summary), 1):
            where = f"{place}, paragraph {number}"
            for inner, question in enumerate(_objects(paragraph.get("qas", []), where, "qas", summary), 1):
                yield f"{where}, question {inner}", {"context": paragraph.get("context"), **question}
    else:
        yield place, row


def _objects(value: Any, place: str, name: str, summary: SourceSummary) -> list[dict[str, Any]]:
    """The value of a key as a list of objects; an empty one if it is none, which is recorded."""
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        return value
    summary.unreadable(f"{place}: {name} is no list of objects")
    return []


def _question(row: dict[str, Any], place: str, summary: SourceSummary, labelled: bool) -> Question | None:
    """The question of a row; None if it has no question, context, or place of its answer, which is recorded."""
    question, context = row.get("question"), row.get("context")
    if not isinstance(question, str) or not isinstance(context, str) or not question.strip() or not context.strip():
        summary.unreadable(f"{place}: has no question and context")
        return None
    name = None if row.get("id") is None else str(row["id"])
    if not labelled:
        return Question(question, context, [], -1, place, name)
    try:
        answers = _answers(row.get("answers"))
        given, answers = answers, [answer for answer in answers if str(answer["text"]).strip()]
        if len(answers) < len(given):
            summary.note("empty answers", "taken for none", place)
        # White space around an answer belongs to no token.
        texts = [str(answer["text"]).strip() for answer in answers]
        start = _start(answers[0]) if answers else -1
    except (TypeError, KeyError, ValueError):
        summary.unreadable(f"{place}: answers are no texts with answer_start")
        return None
    if texts and (start < 0 or context[start : start + len(texts[0])] != texts[0]):
        start = _moved(context, texts[0], place, summary)
        if start < 0:
            return None
    return Question(question, context, texts, start, place, name)


def _answers(value: Any) -> list[Any]:
    """The answers of a row: a list of objects, or as `datasets` has them one of lists; also a single object.

    Raises:
        TypeError, KeyError, ValueError: if it is none of these, or there are not as many ``answer_start`` as texts.
    """
    if not isinstance(value, dict):
        return list(value or ())
    texts, starts = value["text"], value["answer_start"]
    if isinstance(texts, str):
        return [value]
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]


def _start(answer: Any) -> int:
    """Where an answer begins in its context, behind white space in front of it."""
    text, start = str(answer["text"]), int(answer["answer_start"])
    return start + len(text) - len(text.lstrip()) if start >= 0 else -1


def _moved(context: str, answer: str, place: str, summary: SourceSummary) -> int:
    if context.count(answer) == 1 and answer:
        summary.note("answers that begin elsewhere in their text", "found there", place)
        return context.index(answer)
    summary.unreadable(f"{place}: the text has no answer {answer[:40]!r} at answer_start")
    return -1
