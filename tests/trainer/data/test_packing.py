"""Rows of a token stream: separators, documents apart, pairs of segments, and which tokens are masked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import Dataset, load, masking, sampling, tokenizer, tokens
from bellwether.trainer.data.packing import Stream, ends_path
from bellwether.trainer.data.sampling import random_bits, sample_keys
from bellwether.trainer.data.text import TextData

Config = Callable[..., TextData]


@pytest.fixture
def numbered(tmp_path: Path) -> Config:
    """100 documents of 3 to 29 tokens; each repeats a word of its own, so a token names its document (minus 5)."""
    lengths = [3 + i * 7 % 27 for i in range(100)]
    (tmp_path / "lines.txt").write_text("\n".join(" ".join([f"w{i}"] * n) for i, n in enumerate(lengths)))
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join([*tokenizer.SPECIAL, *(f"w{i}" for i in range(100))]) + "\n")

    def make(**keys: Any) -> TextData:
        given = {
            "source": str(tmp_path / "lines.txt"),
            "tokenizer": str(vocabulary),
            "cache": str(tmp_path),
            "validation_share": 0.2,
        }
        return TextData(kind="text", **{**given, "sequence_length": 32, **keys})

    return make


def batch(data: Dataset, count: int | None = None) -> dict[str, torch.Tensor]:
    rows = np.arange(len(data.train) if count is None else count) % len(data.train)
    return data.train.batch(rows, sample_keys(1, np.arange(len(rows))))


def restored(found: dict[str, torch.Tensor]) -> torch.Tensor:
    return found["input_ids"].scatter(1, found["masked_positions"], found["labels"])


def test_earlier_versions_draw_the_same_bits(text_config: Config) -> None:
    """With these two keys, a batch is what versions before December 2026 made."""
    data = load(text_config(packing="stream", random_tokens="all"))
    rows, keys = np.arange(20), sample_keys(1, np.arange(20))
    size, k, words = data.vocabulary_size, 4, data.tokenizer
    assert size is not None
    stream = np.fromfile(data.train.path, dtype="uint16").astype(np.int64)
    ids = stream[rows[:, None] * 30 + np.arange(30)]
    choice, treatment, other = np.split(random_bits(keys, 90), 3, axis=1)
    masked = np.sort(np.argsort(choice, axis=1, kind="stable")[:, :k], axis=1)
    labels = np.take_along_axis(ids, masked, axis=1)
    fraction = sampling.uniform(np.take_along_axis(treatment, masked, axis=1))
    random = (sampling.uniform(np.take_along_axis(other, masked, axis=1)) * size).astype(np.int64)
    inputs = np.where(fraction < 0.8, words.mask_token_id, np.where(fraction < 0.9, random, labels))
    np.put_along_axis(ids, masked, inputs, axis=1)
    found = data.train.batch(rows, keys)
    assert (found["input_ids"][:, 1:-1].numpy() == ids).all()
    assert (found["labels"].numpy() == labels).all()
    assert (found["masked_positions"].numpy() == masked + 1).all()


def test_each_document_is_followed_by_a_separator(numbered: Config) -> None:
    data = load(numbered())
    words = data.tokenizer
    whole = restored(batch(data))[:, 1:-1].flatten().tolist()
    documents: list[list[int]] = [[]]
    for token in whole:
        if token == words.sep_token_id:
            documents.append([])
        else:
            documents[-1].append(token)
    complete = documents[:-1]
    assert len(complete) >= 75
    assert all(len(set(document)) == 1 for document in complete), "no document crosses a separator"
    assert len({document[0] for document in complete}) == len(complete)
    assert [t for t in whole if t != words.sep_token_id] == np.fromfile(data.train.path, dtype="uint16").tolist()[
        : sum(map(len, documents))
    ]


def test_separators_are_not_masked_and_random_tokens_are_not_special(numbered: Config) -> None:
    data = load(numbered(mask_share=0.45))
    found = batch(data, 500)
    special = set(data.tokenizer.all_special_ids)
    assert not set(found["labels"].flatten().tolist()) & special
    replaced = set(found["input_ids"].gather(1, found["masked_positions"]).flatten().tolist())
    assert replaced & special == {data.tokenizer.mask_token_id}


def test_one_preparation_serves_every_packing(numbered: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    load(numbered())
    monkeypatch.setattr(tokens, "_tokenize", lambda *args: pytest.fail("tokenized again"))
    for keys in ({"packing": "stream"}, {"packing": "documents"}, {"next_sentence": True}):
        assert len(load(numbered(**keys)).train)


def test_documents_of_a_row_are_numbered_and_their_positions_restart(numbered: Config) -> None:
    data = load(numbered(packing="documents"))
    found = batch(data)
    ids = restored(found)
    for row in range(len(ids)):
        numbers, places = found["documents"][row].tolist(), found["position_ids"][row].tolist()
        assert numbers[0] == 0
        assert numbers == sorted(numbers)
        for document in range(numbers[-1] + 1):
            at = [i for i, number in enumerate(numbers) if number == document]
            assert [places[i] for i in at] == list(range(len(at)))
            assert len({ids[row, i].item() for i in at} - set(data.tokenizer.all_special_ids)) <= 1
        assert ids[row, 0] == data.tokenizer.cls_token_id
        assert ids[row, -1] == data.tokenizer.sep_token_id


def test_pairs_are_half_continuations_and_half_of_another_document(numbered: Config) -> None:
    data = load(numbered(next_sentence=True))
    found = batch(data, 4000)
    ids, types, random = restored(found), found["token_type_ids"], found["next_sentence_label"]
    assert abs(random.float().mean() - 0.5) < 0.04
    words = data.tokenizer
    special = set(words.all_special_ids)
    first_lengths = set()
    for row in range(len(ids)):
        cut = int((types[row] == 0).sum())  # [CLS] first [SEP]
        first_lengths.add(cut - 2)
        assert types[row].tolist() == [0] * cut + [1] * (32 - cut)
        assert (ids[row, 0], ids[row, cut - 1], ids[row, -1]) == (
            words.cls_token_id,
            words.sep_token_id,
            words.sep_token_id,
        )
        before, after = ids[row, cut - 2].item(), ids[row, cut].item()
        assert before not in special
        if random[row]:
            assert after != before, "the second segment begins in another document"
        else:
            assert after == before, "the second segment goes on in the document"
    assert len(first_lengths) > 15
    positions = found["masked_positions"]
    assert (positions[:, 1:] > positions[:, :-1]).all()
    assert not set(found["labels"].flatten().tolist()) & special
    again = data.train.batch([3, 4], [5, 6])
    assert all(torch.equal(again[name], value) for name, value in data.train.batch([3, 4], [5, 6]).items())


def test_pairs_of_a_single_document_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(" ".join(f"{name}{i % 7}" for i in range(500)))
    with pytest.raises(
        ConfigError, match=r"data.next_sentence: True: .* draws segments from other documents, and there is one"
    ):
        load(TextData(
            kind="text", source=str(tmp_path / "a.txt"), validation=str(tmp_path / "b.txt"), documents="files", vocabulary_size=64,
            sequence_length=16, cache=str(tmp_path), next_sentence=True, max_unknown=1.0,
        ))  # fmt: skip


def test_whole_words_are_masked(text_config: Config) -> None:
    data = load(text_config(whole_words=True))
    words = data.tokenizer
    continuing = masking.continuing_tokens(words, data.vocabulary_size or 0)
    assert continuing is not None
    found = batch(data, 2000)
    ids = restored(found).numpy()
    parts, whole = 0, 0
    for row, positions in zip(ids, found["masked_positions"].numpy(), strict=True):
        chosen = set(positions.tolist())
        starts = [i for i in range(1, 31) if i == 1 or not continuing[row[i]] or row[i - 1] == words.sep_token_id]
        groups = [set(range(a, b)) for a, b in zip(starts, [*starts[1:], 31], strict=True)]
        touched = [group for group in groups if group & chosen]
        split = [group for group in touched if not group <= chosen]
        assert len(split) <= 1, "only what is left of the number of tokens is a part of a word"
        parts += len(split)
        whole += len(touched) - len(split)
    assert whole > 10 * parts
    single = load(text_config())
    assert not torch.equal(batch(single)["masked_positions"], batch(data)["masked_positions"])


def test_words_are_chosen_at_random() -> None:
    """20 words of two tokens, 4 tokens to mask: each word equally often, both tokens together."""
    order = random_bits(np.arange(20_000), 40)
    continues = np.zeros((20_000, 40), dtype=np.bool_)
    continues[:, 1::2] = True
    chosen = masking.choose(order, 4, None, continues)
    assert (chosen[:, ::2] + 1 == chosen[:, 1::2]).all()
    counts = np.bincount(chosen[:, ::2].flatten() // 2, minlength=20)
    assert abs(counts - 2000).max() < 5 * 2000**0.5


def test_exactly_as_many_tokens_are_masked_where_no_word_fits_into_the_rest() -> None:
    continues = np.zeros((100, 10), dtype=np.bool_)
    continues[:, 1::2] = True
    chosen = masking.choose(random_bits(np.arange(100), 10), 3, None, continues)
    for row in chosen.tolist():
        assert sorted(np.bincount(np.array(row) // 2, minlength=5).tolist()) == [0, 0, 0, 1, 2]


def test_tokens_that_continue_a_word_are_known_by_their_mark() -> None:
    class Words:
        def __init__(self, *words: str) -> None:
            self.words = words

        def get_vocab(self) -> dict[str, int]:
            return {word: number for number, word in enumerate(self.words)}

    for words in (("##a", "b"), ("a", "\u0120b"), ("a", "\u2581b")):
        found = masking.continuing_tokens(Words(*words), 2)
        assert found is not None
        assert found.tolist() == [True, False]
    assert masking.continuing_tokens(Words("a", "b"), 2) is None


def test_random_tokens_are_drawn_evenly_from_all_but_the_special_ones() -> None:
    drawn = masking.random_tokens(random_bits(np.arange(50_000), 1), 12, (0, 3, 4, 11))
    counts = np.bincount(drawn.flatten(), minlength=12)
    assert [token for token in range(12) if not counts[token]] == [0, 3, 4, 11]
    assert abs(counts[counts > 0] - 6250).max() < 5 * 6250**0.5


def test_long_documents_end_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_PIECE", 10)
    monkeypatch.setattr(tokens, "_CHUNK", 25)
    for texts in (["one two three four five six", "", "seven"], ["aaaa bbbb", "cccc dddd eeee ffff gggg", "h"]):
        chunks = list(tokens._chunks(texts))
        flags = [last for _, is_last, _ in chunks for last in is_last]
        found = "".join(
            piece + ("|" if last else "")
            for chunk, is_last, _ in chunks
            for piece, last in zip(chunk, is_last, strict=True)
        )
        assert found == "".join(f"{text}|" for text in texts)
        assert sum(flags) == len(texts)


def test_stream_reads_separators_at_any_position(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    np.array([1, 1, 2, 3, 3, 3], dtype="uint16").tofile(path)
    np.array([2, 3, 6], dtype=np.int64).tofile(ends_path(path))
    stream = Stream(path, "uint16", separator=9)
    assert stream.read(np.arange(len(stream))).tolist() == [1, 1, 9, 2, 9, 3, 3, 3, 9]
    assert stream.document(np.arange(len(stream))).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert Stream(path, "uint16").read(np.arange(6)).tolist() == [1, 1, 2, 3, 3, 3]


@pytest.mark.parametrize("keys, message", [
    ({"next_sentence": True, "packing": "documents"}, "attention spans both segments"),
    ({"mask_share": 0.5}, "separators are not masked"),
])  # fmt: skip
def test_contradictions_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextData(kind="text", **keys)
