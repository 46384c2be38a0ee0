"""Questions: windows of long texts, the tokens of answers, and what is refused or counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from bellwether.trainer import scores
from bellwether.trainer.config import ConfigError, ConfigErrors
from bellwether.trainer.data import load
from bellwether.trainer.data.question_answering import QuestionAnswering
from bellwether.trainer.data.question_samples import QuestionSamples
from bellwether.trainer.models import tasks
from tests.trainer.labelled import squad


@pytest.fixture
def make(tmp_path: Path, tokenizer: Path) -> Callable[..., QuestionAnswering]:
    def config(content: Any, name: str = "a.json", **keys: Any) -> QuestionAnswering:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        files = {"source": str(tmp_path / name), "validation": str(tmp_path / name)}
        defaults = {
            "tokenizer": str(tokenizer),
            "cache": str(tmp_path / "cache"),
            "max_overlap": 1.0,
            "sequence_length": 16,
            "stride": 4,
        }
        return QuestionAnswering(kind="question-answering", **{**files, **defaults, **keys})

    return config


TEXT = " ".join(f"w{n}" for n in range(30))


def row(start: int | None, text: str, context: str = TEXT) -> dict[str, Any]:
    answers = [] if start is None else [{"text": text, "answer_start": start}]
    return {"id": "1", "question": "w40 w41", "context": context, "answers": answers}


def test_answer_is_labelled_in_each_window_that_holds_it_whole(make: Callable[..., QuestionAnswering]) -> None:
    begin = TEXT.index("w9 ")
    dataset = make(json.dumps(row(begin, "w9 w10")), "a.jsonl").load()
    samples = dataset.train
    assert isinstance(samples, QuestionSamples)
    batch = samples.batch(range(len(samples)), range(len(samples)))
    held = []
    for window in range(len(samples)):
        first, last = batch["labels"][window].tolist()
        ids = batch["input_ids"][window]
        words = [f"w{token - 5}" for token in ids.tolist() if token >= 5]
        assert words[:2] == ["w40", "w41"]
        if (first, last) != (0, 0):
            held.append(window)
            assert [f"w{token - 5}" for token in ids[first : last + 1].tolist()] == ["w9", "w10"]
            assert samples.answer(window, first, last) == (begin, begin + len("w9 w10"))
            assert batch["context"][window, first : last + 1].tolist() == [1, 1]
        else:
            assert not ("w9" in words[2:] and "w10" in words[2:])
        assert batch["context"][window].sum() == len(words) - 2
    assert len(held) >= 1
    assert samples.questions.tolist() == [0] * len(samples)


def test_nested_and_flat_files_hold_the_same_questions(make: Callable[..., QuestionAnswering]) -> None:
    nested = squad(6, without=0.3)
    flat = [
        {"question": qa["question"], "context": p["context"], "answers": {
            "text": [a["text"] for a in qa["answers"]], "answer_start": [a["answer_start"] for a in qa["answers"]],
        }}
        for p in nested["data"][0]["paragraphs"] for qa in p["qas"]
    ]  # fmt: skip
    ours, theirs = make(nested).load(), make("".join(json.dumps(each) + "\n" for each in flat), "b.jsonl").load()
    assert len(ours.train) == len(theirs.train)
    rows = range(len(ours.train))
    for key, value in ours.train.batch(rows, rows).items():
        assert torch.equal(value, theirs.train.batch(rows, rows)[key]), key
    assert ours.summary is not None
    assert "questions without an answer in their text" in " ".join(map(str, ours.summary.source.findings))


def test_answer_at_another_place_is_found_or_refused(make: Callable[..., QuestionAnswering]) -> None:
    moved = make(json.dumps(row(0, "w9 w10")), "a.jsonl").load()
    assert moved.summary is not None
    assert "1 answers that begin elsewhere in their text: found there" in " ".join(
        map(str, moved.summary.source.findings)
    )
    good = json.dumps(row(TEXT.index("w9 "), "w9"))
    with pytest.raises((ConfigError, ConfigErrors), match=r"the text has no answer 'w99' at answer_start"):
        load(make(good + "\n" + json.dumps(row(3, "w99")), "b.jsonl"))


def test_empty_answers_are_none(make: Callable[..., QuestionAnswering]) -> None:
    """As tables have them whose questions without an answer have a row like the others."""
    rows = [row(0, ""), {**row(0, " "), "answers": {"text": [""], "answer_start": [0]}}, row(0, "w0"), row(None, "")]
    given = make("\n".join(map(json.dumps, rows)), "a.jsonl")
    found = load(given)
    assert found.summary is not None
    assert {str(finding) for finding in found.summary.source.findings} >= {
        "3 questions without an answer in their text: the answer is to be empty, as in SQuAD 2.0",
        f"2 empty answers: taken for none ({given.source}, line 1; {given.source}, line 2)",
    }


@pytest.mark.parametrize("text", [" w9 w10", "w9 w10 ", " w9 w10 "], ids=repr)
def test_white_space_around_an_answer_is_no_part_of_it(make: Callable[..., QuestionAnswering], text: str) -> None:
    with_it, without = (
        make(json.dumps(row(TEXT.index(each), each)), f"{name}.jsonl").load()
        for name, each in (("a", text), ("b", "w9 w10"))
    )
    rows = range(len(without.train))
    labels = with_it.train.batch(rows, rows)["labels"]
    assert labels.any()
    assert torch.equal(labels, without.train.batch(rows, rows)["labels"])


def test_negative_start_is_no_place(make: Callable[..., QuestionAnswering]) -> None:
    """Counted from the end, the text would have the answer there."""
    found = make(json.dumps(row(-3, "w2", "w1 w2 w3")), "a.jsonl").load()
    assert found.train.batch([0], [0])["labels"].any()
    assert found.summary is not None
    assert "found there" in " ".join(map(str, found.summary.source.findings))


def test_single_answer_is_a_list_of_one(make: Callable[..., QuestionAnswering]) -> None:
    given = {**row(0, "w9"), "answers": {"text": "w9", "answer_start": TEXT.index("w9")}}
    assert load(make(json.dumps(given), "a.jsonl")).train.batch([0, 1], [0, 0])["labels"].any()


REFUSED: dict[str, tuple[str, str]] = {
    "nothing": ('{"a": 1}', "has no questions"),
    "no context": (json.dumps(row(0, "w0")) + "\n" + '{"question": "w1"}', "has no question and context"),
    "answers": (json.dumps(row(0, "w0")) + "\n" + json.dumps({**row(0, "w0"), "answers": ["w0"]}), "answers are no texts with answer_start"),
    "no start": (json.dumps(row(0, "w0")) + "\n" + json.dumps({**row(0, "w0"), "answers": {"text": ["w0"]}}), "answers are no texts with answer_start"),
    "fewer starts": (
        json.dumps(row(0, "w0")) + "\n" + json.dumps({**row(0, "w0"), "answers": {"text": ["w0", "w1"], "answer_start": [0]}}),
        "answers are no texts with answer_start",
    ),
    "start of a list": (
        json.dumps(row(0, "w0")) + "\n" + json.dumps({**row(0, "w0"), "answers": {"text": ["w0"], "answer_start": 0}}),
        "answers are no texts with answer_start",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_are_no_questions_are_refused(make: Callable[..., QuestionAnswering], case: str) -> None:
    content, message = REFUSED[case]
    with pytest.raises((ConfigError, ConfigErrors), match=message):
        load(make(content, "a.jsonl"))


def test_windows_that_would_share_most_of_their_tokens_are_refused(make: Callable[..., QuestionAnswering]) -> None:
    with pytest.raises(ValidationError, match="share at most half of them; write 8 or less"):
        make({}, stride=9)


def test_best_span_is_that_of_an_exhaustive_search() -> None:
    torch.manual_seed(0)
    first, last = torch.randn(2, 5, 12)
    context = torch.zeros(5, 12, dtype=torch.long)
    context[:, 4:11] = 1
    task = tasks.QuestionAnswering.__new__(tasks.QuestionAnswering)
    torch.nn.Module.__init__(task)
    task.max_answer = 3
    for b, (i, j, value, null, _) in enumerate(task._spans(first, last, context).tolist()):
        spans = [(float(first[b, s] + last[b, e]), s, e) for s in range(4, 11) for e in range(s, min(s + 3, 11))]
        assert (value, i, j) == pytest.approx(max(spans))
        assert null == pytest.approx(float(first[b, 0] + last[b, 0]))


# Prediction, right answers, exact match and F1; by hand from the definition.
ANSWERS: list[tuple[str, list[str], float, float]] = [
    ("Denver Broncos", ["Denver Broncos"], 1, 1),
    ("The Denver Broncos!", ["denver broncos"], 1, 1),
    ("Broncos", ["Denver Broncos", "the Broncos"], 1, 1),
    ("Denver", ["Denver Broncos"], 0, 2 / 3),
    ("a b b c", ["b b d"], 0, 4 / 6),  # the article goes
    ("", [], 1, 1),
    ("something", [], 0, 0),
    ("", ["Denver"], 0, 0),
    ("the", ["Denver"], 0, 0),
]


@pytest.mark.parametrize("case", range(len(ANSWERS)))
def test_answers_are_scored_as_squad_defines(case: int) -> None:
    predicted, right, exact, f1 = ANSWERS[case]
    assert scores.answers([(predicted, right)]) == {"exact_match": exact, "f1": pytest.approx(f1)}


def test_mean_is_over_questions() -> None:
    found = scores.answers([(p, r) for p, r, _, _ in ANSWERS])
    assert found["f1"] == pytest.approx(np.mean([f1 for *_, f1 in ANSWERS]))
