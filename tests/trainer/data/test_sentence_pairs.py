"""Pairs of segments of whole sentences: against BERT's algorithm, written as loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import Dataset, load, masking, sentence_pairs, sentences, tokenizer
from bellwether.trainer.data.sampling import fold_in, random_bits, sample_keys, uniform
from bellwether.trainer.data.sentence_pairs import Pairs, plan
from bellwether.trainer.data.text import TextData

Config = Callable[..., TextData]
LENGTH = 32


@pytest.mark.parametrize("text, rule, expected", [
    ("a b\nc. d\ne", "lines", ["a b", "\nc. d", "\ne"]),
    ("a\n\n\nb\n", "lines", ["a", "\n\n\nb", "\n"]),
    ("It is. Is it? Yes! 3 of 4.", "punctuation", ["It is.", " Is it?", " Yes!", " 3 of 4."]),
    ("He said: “No.” She left.", "punctuation", ["He said: “No.”", " She left."]),
    ("of 3.5 m, e.g. this, by J. R. R. Tolkien.\nThe end", "punctuation", ["of 3.5 m, e.g. this, by J. R. R. Tolkien.", "\nThe end"]),
    ("Title\n\nit began\nthere", "punctuation", ["Title", "\n\nit began\nthere"]),
    ("一。二！三", "punctuation", ["一。", "二！", "三"]),
    ("", "punctuation", []),
    (" \n\n ", "punctuation", [" \n\n "]),
])  # fmt: skip
def test_text_is_cut_into_sentences(text: str, rule: str, expected: list[str]) -> None:
    assert list(sentences.split(text, rule)) == expected
    assert "".join(expected) == text


def corpus(seed: int, documents: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """The ends of sentences and of documents, of 1 to 30 sentences of 1 to 40 tokens."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 31, documents)
    ends = np.cumsum(rng.integers(1, 41, counts.sum()))
    return ends, ends[np.cumsum(counts) - 1]


def chunks_one_by_one(ends: np.ndarray, documents: np.ndarray, content: int, seed: int) -> list[list[int]]:
    """`create_instances_from_document`, with the random numbers of `plan`."""
    found = []
    for number, stop in enumerate(documents.tolist()):
        start = int(documents[number - 1]) if number else 0
        lengths = np.diff([start, *ends[(ends > start) & (ends <= stop)].tolist()]).tolist()
        position, at, count = 0, start, 0
        while position < len(lengths):
            draws = uniform(random_bits(sample_keys(fold_in(seed ^ sentence_pairs._PLAN, count), [number]), 4))[0]
            target = content
            if draws[0] < 0.1:
                target = range(2, content + 1)[int(draws[1] * (content - 1))]
            chunk: list[int] = []
            while position + len(chunk) < len(lengths):
                chunk.append(lengths[position + len(chunk)])
                if sum(chunk) >= target:
                    break
            a_end = 1
            if len(chunk) >= 2:
                a_end = range(1, len(chunk))[int(draws[2] * (len(chunk) - 1))]
            is_random = len(chunk) == 1 or draws[3] < 0.5
            used = chunk[:a_end] if is_random else chunk
            found.append([at, at + sum(chunk[:a_end]), at + sum(used), target])
            position, at, count = position + len(used), at + sum(used), count + 1
    return found


@pytest.mark.parametrize("content", [5, 29, 125])
def test_chunks_are_those_of_bert(content: int) -> None:
    ends, documents = corpus(content)
    assert plan(ends, documents, content, 3).tolist() == chunks_one_by_one(ends, documents, content, 3)
    assert plan(ends, documents, content, 3).tolist() != plan(ends, documents, content, 4).tolist()


def test_shares_of_short_and_of_random_pairs_are_those_of_bert() -> None:
    ends, documents = corpus(0, 3000)
    chunks = plan(ends, documents, 61, 0)
    lone = np.isin(chunks[:, 1], ends[1:]) & (chunks[:, 2] == chunks[:, 1])
    assert abs((chunks[:, 3] < 61).mean() - 0.1 * 59 / 60) < 0.01
    assert 0.5 < lone.mean() < 0.62  # half, and the chunks of a single sentence


def test_long_pairs_are_truncated_as_by_bert() -> None:
    sizes = list(itertools.product(range(1, 14), repeat=2))
    first, second = (np.array(x, dtype=np.int64) for x in zip(*sizes, strict=True))
    for most in (5, 8):
        given = Pairs(first * 0, first, first * 0 + 100, second, first > 0)
        found = sentence_pairs._truncated(given, most, np.arange(len(sizes)))
        for row, (a, b) in enumerate(sizes):
            while a + b > most:
                a, b = (a - 1, b) if a > b else (a, b - 1)
            assert (found.first_length[row], found.second_length[row]) == (a, b)
        for start, length, whole, begin in (
            (found.first, found.first_length, first, 0),
            (found.second, found.second_length, second, 100),
        ):
            assert ((start >= begin) & (start + length <= begin + whole)).all()


def test_a_token_is_removed_at_the_front_as_often_as_at_the_back() -> None:
    flips = np.tile(np.array([[1, 200]]), (20_000, 1))
    heads = sentence_pairs._heads(flips, np.arange(20_000))
    assert abs(heads[:, 0].mean() - 0.5) < 0.02
    assert abs(heads[:, 1].mean() - 100) < 0.3
    assert abs(heads[:, 1].var() - 50) < 3


@pytest.fixture
def sentence_config(tmp_path: Path) -> Config:
    """80 documents of 1 to 12 lines of 2 to 13 words; each word names its document and line."""
    rng = np.random.default_rng(5)
    documents = [
        [" ".join([f"d{number}x{line}"] * rng.integers(2, 14)) for line in range(rng.integers(1, 13))]
        for number in range(80)
    ]
    (tmp_path / "corpus.txt").write_text("\n\n".join("\n".join(lines) for lines in documents))
    words = [f"d{number}x{line}" for number, lines in enumerate(documents) for line in range(len(lines))]
    (tmp_path / "vocab.txt").write_text("\n".join([*tokenizer.SPECIAL, *words]) + "\n")

    def make(**keys: Any) -> TextData:
        given = {
            "source": str(tmp_path / "corpus.txt"), "tokenizer": str(tmp_path / "vocab.txt"), "cache": str(tmp_path), "documents": "paragraphs",
            "validation_share": 0.2, "sequence_length": LENGTH, "next_sentence": True, "sentences": "lines",
        }  # fmt: skip
        return TextData(kind="text", **{**given, **keys})

    return make


def drawn(data: Dataset, count: int) -> dict[str, torch.Tensor]:
    rows = np.arange(count) % len(data.train)
    return data.train.batch(rows, sample_keys(1, np.arange(count)))


def test_pairs_are_whole_sentences_of_one_or_two_documents(sentence_config: Config) -> None:
    data = load(sentence_config(mask_share=0.2))
    words = data.tokenizer
    count = 3000
    found = drawn(data, count)
    labels, short, random = found["labels"], 0, found["next_sentence_label"]
    special = set(words.all_special_ids)
    for row in range(count):
        masked = found["masked_positions"][row, : (used := int(found["masked_counts"][row]))].tolist()
        ids = found["input_ids"][row].clone()
        ids[masked] = labels[row, :used]
        length = int(found["attention_mask"][row].sum())
        cut = int((found["token_type_ids"][row] == 0)[:length].sum())  # [CLS] first [SEP]
        assert found["attention_mask"][row].tolist() == [1] * length + [0] * (LENGTH - length)
        assert found["token_type_ids"][row].tolist() == [0] * cut + [1] * (length - cut) + [0] * (LENGTH - length)
        assert (ids[0], ids[cut - 1], ids[length - 1]) == (words.cls_token_id, words.sep_token_id, words.sep_token_id)
        assert set(ids[length:].tolist()) <= {words.pad_token_id}
        assert used == min(max(1, round(length * 0.2)), labels.shape[1])
        assert sorted(set(masked)) == masked
        assert not set(labels[row, :used].tolist()) & special
        segments = [words.convert_ids_to_tokens(part.tolist()) for part in (ids[1 : cut - 1], ids[cut : length - 1])]
        lines = [[tuple(map(int, token[1:].split("x"))) for token, _ in itertools.groupby(part)] for part in segments]
        for part in lines:
            assert [line - part[0][1] for _, line in part] == list(range(len(part))), "sentences follow one another"
            assert len({document for document, _ in part}) == 1
        (document, last), (other, first) = lines[0][-1], lines[1][0]
        assert (document == other) == (not random[row])
        if not random[row]:
            # Truncated at the front, the second segment may begin with a later sentence, and the first end with an earlier one.
            assert first > last
        short += length < LENGTH - 3
    assert 0.1 < short / count < 0.5  # a tenth by intent, and at the ends of documents
    assert 0.5 < random.float().mean() < 0.7
    again = data.train.batch([3, 4], [5, 6])
    assert all(torch.equal(again[name], value) for name, value in data.train.batch([3, 4], [5, 6]).items())
    held_out = data.validation.batch([0, 1], [5, 6])
    assert all(torch.equal(value, data.validation.batch([0, 1], [7, 8])[name]) for name, value in held_out.items())


def test_a_pass_covers_the_text(sentence_config: Config) -> None:
    data = load(sentence_config())
    train: Any = data.train
    chunks = np.load(train.pairs.folder / "0.npy")
    starts, ends = np.append(chunks[1:, 0], len(train.stream)), chunks[:, 2]
    assert (chunks[0, 0], starts.tolist()) == (0, ends.tolist())
    assert data.summary is not None
    counted = {finding.what: finding.count for finding in data.summary.source.findings}
    assert counted["pairs of segments"] == len(data.train)
    assert counted["sentences"] > 64 * 2


def test_rule_of_sentences_is_part_of_what_data_is_known_by(
    sentence_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: Any = load(sentence_config(sentences=None))
    lines: Any = load(sentence_config())
    monkeypatch.setattr(sentences, "REVISION", 2)
    later = load(sentence_config())
    monkeypatch.setattr(sentence_pairs, "REVISION", 2)
    assert len({whole.fingerprint, lines.fingerprint, later.fingerprint, load(sentence_config()).fingerprint}) == 4
    assert lines.train.path.read_bytes() == whole.train.path.read_bytes()


def test_rows_mask_tokens_and_whole_words_of_their_own_number() -> None:
    order, counts = random_bits(np.arange(300), 12), np.arange(300) % 5
    excluded = np.zeros((300, 12), dtype=np.bool_)
    excluded[:, 10:] = True
    continues = np.zeros((300, 12), dtype=np.bool_)
    continues[:, 1::2] = True
    for words in (None, continues):
        for row, count in zip(masking.choose(order, 4, excluded, words, counts), counts, strict=True):
            assert (row[:count] < 10).all()
            assert len(set(row[:count].tolist())) == count
            assert (row[count:] == 11).all()
            if words is not None:
                parts = np.bincount(row[:count] // 2, minlength=6)
                assert (parts == 1).sum() <= count % 2


@pytest.mark.parametrize("keys, message", [
    ({"next_sentence": False}, "sentences: they make segments, and there are none; write next_sentence: true, or null"),
    ({"documents": "lines"}, "sentences: each document is one line; write documents: paragraphs or files"),
])  # fmt: skip
def test_contradictions_are_refused(sentence_config: Config, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sentence_config(**keys)


def test_documents_of_one_sentence_are_refused(sentence_config: Config) -> None:
    with pytest.raises(ConfigError, match=r"data.sentences: 'punctuation': none of .* documents has two sentences"):
        load(sentence_config(sentences="punctuation", documents="lines"))
