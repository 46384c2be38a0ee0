"""Labelled words: which token has a word's label, and what is refused or counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertTokenizerFast

from bellwether.trainer.config import ConfigError, ConfigErrors
from bellwether.trainer.data import load, text_sources, token_samples
from bellwether.trainer.data.labelled_tokens import LabelledTokens
from bellwether.trainer.data.token_samples import IGNORED


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., LabelledTokens]:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "new", "york", "##er", "is", "old", "he"]
    BertTokenizerFast(vocab={token: index for index, token in enumerate(tokens)}).save_pretrained(
        tmp_path / "tokenizer"
    )

    def config(content: str, name: str = "a.jsonl", **keys: Any) -> LabelledTokens:
        (tmp_path / name).write_text(content)
        defaults = {"tokenizer": str(tmp_path / "tokenizer"), "cache": str(tmp_path / "cache"), "max_overlap": 1.0}
        files = {"source": str(tmp_path / name), "validation": str(tmp_path / name)}
        return LabelledTokens(kind="labelled-tokens", **{**files, **defaults, **keys})

    return config


def lines(*rows: tuple[list[str], list[Any]]) -> str:
    return "".join(json.dumps({"tokens": words, "ner_tags": labels}) + "\n" for words, labels in rows)


GOOD = lines((["New", "Yorker"], ["B-LOC", "I-LOC"]), (["he", "is", "old"], ["O", "O", "O"]))


def test_first_piece_of_a_word_has_its_label(make: Callable[..., LabelledTokens]) -> None:
    dataset = make(GOOD).load()
    assert dataset.labels == ["B-LOC", "I-LOC", "O"]
    batch = dataset.train.batch([0, 1], [0, 0])
    assert batch["input_ids"].tolist() == [[2, 5, 6, 7, 3, 0, 0, 0], [2, 10, 8, 9, 3, 0, 0, 0]]
    x = IGNORED
    assert batch["labels"].tolist() == [[x, 0, 1, x, x, x, x, x], [x, 2, 2, 2, x, x, x, x]]


def test_words_on_lines_are_read_as_in_conll(make: Callable[..., LabelledTokens]) -> None:
    text = (
        "-DOCSTART- -X- O O\n\nNew NNP B-NP B-LOC\nYorker NNP I-NP I-LOC\n\nhe PRP B-NP O\nis VBZ B-VP O\nold JJ O O\n"
    )
    dataset = make(text, "a.txt").load()
    wanted = make(GOOD).load()
    for key, value in wanted.train.batch([0, 1], [0, 0]).items():
        assert dataset.train.batch([0, 1], [0, 0])[key].tolist() == value.tolist()
    assert dataset.summary is not None
    assert any("-DOCSTART-" in str(found) for found in dataset.summary.source.findings)


@pytest.mark.parametrize("separator", [" ", "   ", "\t"], ids=repr)
def test_no_break_space_is_part_of_a_word(tmp_path: Path, separator: str) -> None:
    (tmp_path / "a.txt").write_text(
        f"\ufeffNew\u00a0York{separator}B-LOC\r\n\u00a0\r\nhe{separator}O\r\n", encoding="utf-8"
    )
    config = LabelledTokens(kind="labelled-tokens", source=str(tmp_path / "a.txt"), tokenizer="vocab.txt")
    found = token_samples.read(config, text_sources.locate(config, "data.source", config.source))
    assert found.words == [["New\u00a0York"], ["he"]]
    assert found.labels == [["B-LOC"], ["O"]]


def test_words_that_do_not_fit_are_counted(make: Callable[..., LabelledTokens]) -> None:
    long = lines((["he"] * 10, ["O"] * 10), (["old", ""], ["B-X", "O"]))
    dataset = make(long, sequence_length=8).load()
    assert dataset.summary is not None
    assert "5 words beyond data.sequence_length" in " ".join(map(str, dataset.summary.source.findings))


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "other length": (GOOD + lines((["he", "is"], ["O"])), {}, r"2 words have 1 labels"),
    "no list": ('{"tokens": "he is", "ner_tags": ["O", "O"]}\n' + GOOD, {}, "holds no list of words"),
    "column": (GOOD, {"label_column": "tags"}, r"data\.label_column: 'tags': .* has no column 'tags'; it has: tokens, ner_tags"),
    "missing": (lines((["he", "is"], ["O", None]), (["old"], ["B-X"])), {}, r"a\.jsonl, line 1 has no label \(None\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_sentences_without_their_labels_are_refused(make: Callable[..., LabelledTokens], case: str) -> None:
    content, keys, message = REFUSED[case]
    with pytest.raises((ConfigError, ConfigErrors), match=message):
        load(make(content, **keys))
