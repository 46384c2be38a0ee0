from __future__ import annotations

import json
import pickle
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from bellwether.trainer.config.errors import ConfigError, ConfigErrors
from bellwether.trainer.data import Dataset, corpus, load, peek, tokenizer, tokens
from bellwether.trainer.data.sampling import sample_keys
from bellwether.trainer.data.summary import SourceSummary
from bellwether.trainer.data.text import TextData

Config = Callable[..., TextData]


@pytest.fixture
def cache_misses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the preparations that were not found in the cache."""
    done: list[str] = []
    for module, name in ((tokens, "_tokenize"), (tokenizer, "_train")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, original=original, name=name: (done.append(name), original(*a))[1])
    return done


def train_rows(data: Dataset) -> dict[str, torch.Tensor]:
    rows = np.arange(len(data.train))
    return data.train.batch(rows, sample_keys(1, rows))


def test_rows_are_packed_and_exactly_k_tokens_are_masked(text_config: Config) -> None:
    for length, share, k in ((32, 0.15, 4), (128, 0.15, 19), (512, 0.15, 76), (8, 0.01, 1)):
        data = load(text_config(sequence_length=length, mask_share=share, validation_share=0.5, packing="stream"))
        batch, words = train_rows(data), data.tokenizer
        rows = len(data.train)
        ids, positions, labels = batch["input_ids"], batch["masked_positions"], batch["labels"]
        assert ids.shape == (rows, length)
        assert positions.shape == labels.shape == (rows, k)
        assert {t.dtype for t in batch.values()} == {torch.int64}
        assert (ids[:, 0] == words.cls_token_id).all()
        assert (ids[:, -1] == words.sep_token_id).all()
        assert (positions[:, 1:] > positions[:, :-1]).all(), "positions ascend, and none appears twice"
        assert positions.min() >= 1
        assert positions.max() <= length - 2
        # With the labels put back, the rows are the token stream: nothing is lost between them, no padding, no special token.
        restored = ids.scatter(1, positions, labels)[:, 1:-1].flatten()
        stream = np.fromfile(data.train.path, dtype="uint16")
        assert (restored.numpy() == stream[: len(restored)]).all()
        assert len(stream) - len(restored) < length - 2
        special = {words.cls_token_id, words.sep_token_id, words.mask_token_id, words.pad_token_id}
        assert not special & set(restored.tolist())


def test_masking_is_80_10_10(text_config: Config) -> None:
    data = load(text_config(packing="stream"))
    rows = np.arange(200_000) % len(data.train)
    batch = data.train.batch(rows, sample_keys(3, np.arange(200_000)))
    tokens = batch["input_ids"].gather(1, batch["masked_positions"])
    mask = tokens == data.tokenizer.mask_token_id
    unchanged = tokens == batch["labels"]
    count, size = tokens.numel(), data.vocabulary_size
    assert size is not None
    ordinary = size - len(data.tokenizer.all_special_ids)
    # One random token in `ordinary` is the label itself. 5 standard errors.
    for share, expected in ((mask, 0.8), (unchanged, 0.1 + 0.1 / ordinary)):
        assert abs(share.float().mean().item() - expected) < 5 * np.sqrt(expected * (1 - expected) / count)
    random = tokens[~mask & ~unchanged]
    assert len(set(random.tolist())) > 0.95 * ordinary, "random tokens come from the whole vocabulary"
    assert not set(random.tolist()) & set(data.tokenizer.all_special_ids)
    # Every position within the row is equally likely.
    positions = torch.bincount(batch["masked_positions"].flatten(), minlength=32)[1:31].float()
    expected = count / 30
    assert (positions - expected).abs().max() < 5 * np.sqrt(expected)


def test_masks_change_with_the_key_in_training_and_never_in_evaluation(text_config: Config) -> None:
    data = load(text_config())
    rows = [0, 1, 2]
    for samples, equal in ((data.train, False), (data.validation, True)):
        a, b = samples.batch(rows, [1, 2, 3]), samples.batch(rows, [4, 5, 6])
        assert torch.equal(a["masked_positions"], b["masked_positions"]) == equal
    a, b = data.validation.batch(rows, [0, 0, 0]), data.validation.batch(rows[::-1], [0, 0, 0])
    assert torch.equal(a["input_ids"], b["input_ids"].flip(0)), (
        "masks depend on the row, not on its position in the batch"
    )


def test_held_out_rows_are_not_trained_on(tmp_path: Path) -> None:
    # Each line repeats one word that no other line has, so a token identifies its line.
    (tmp_path / "lines.txt").write_text("\n".join(" ".join([f"w{i}"] * 40) for i in range(100)))
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join([*tokenizer.SPECIAL, *(f"w{i}" for i in range(100))]) + "\n")
    config = TextData(
        kind="text",
        source=str(tmp_path / "lines.txt"),
        tokenizer=str(vocabulary),
        cache=str(tmp_path),
        sequence_length=8,
        validation_share=0.2,
    )
    data = load(config)
    train, held_out = (set(np.fromfile(part.path, dtype="uint16").tolist()) for part in (data.train, data.validation))
    assert len(train) == 80
    assert len(held_out) == 20
    assert not train & held_out
    assert held_out not in (set(range(5, 25)), set(range(85, 105))), "not just the first or the last lines"


def test_text_is_prepared_once(text_config: Config, tmp_path: Path, cache_misses: list[str], corpus: Path) -> None:
    source = tmp_path / "lines.txt"
    shutil.copy(corpus / "lines.txt", source)
    keys: dict[str, Any] = {"source": str(source), "cache": str(tmp_path / "cache")}
    first = train_rows(load(text_config(**keys)))
    assert cache_misses == ["_train", "_tokenize"]
    again = train_rows(load(text_config(**keys)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    for keys_ in ({}, {"sequence_length": 64}, {"mask_share": 0.3}, {"workers": 0}):
        load(text_config(**keys, **keys_))
    assert cache_misses == ["_train", "_tokenize"], "one preparation serves every sequence length and mask share"
    for keys_ in (
        {"vocabulary_size": 300},
        {"lowercase": False},
        {"validation_share": 0.1},
        {"validation": str(source), "max_overlap": 1.0},
    ):
        cache_misses.clear()
        load(text_config(**keys, **keys_))
        assert cache_misses == ["_train", "_tokenize"], keys_
    cache_misses.clear()
    source.write_text(source.read_text().replace("ba", "bo"))
    load(text_config(**keys))
    assert cache_misses == ["_train", "_tokenize"], "the content changed"


def test_trained_vocabulary_is_reproducible(text_config: Config, tmp_path: Path) -> None:
    vocabularies = [
        load(text_config(cache=str(tmp_path / str(i)), vocabulary_size=200)).tokenizer.get_vocab() for i in range(3)
    ]
    assert vocabularies[0] == vocabularies[1] == vocabularies[2]
    assert len(vocabularies[0]) == 200
    assert [t for t, i in sorted(vocabularies[0].items(), key=lambda x: x[1])][:5] == tokenizer.SPECIAL


def test_names_of_special_tokens_in_the_text_are_tokenized_as_text(tmp_path: Path, text_config: Config) -> None:
    (tmp_path / "a.txt").write_text("\n".join("the [MASK] and [CLS] of [SEP] are [PAD] words" for _ in range(200)))
    data = load(text_config(source=str(tmp_path / "a.txt"), cache=str(tmp_path), max_overlap=1.0))
    stream = np.fromfile(data.train.path, dtype="uint16")
    assert len(stream) > 1000
    assert not set(stream.tolist()) & set(data.tokenizer.all_special_ids)
    # The exported tokenizer recognizes them as special tokens again.
    assert data.tokenizer.convert_tokens_to_ids("[MASK]") in data.tokenizer("a [MASK] b")["input_ids"]


def test_long_documents_are_split_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_PIECE", 10)
    for document in ("one two three four five six", "unbrokenunbroken word", " lead", "", "x\ny" * 9):
        pieces = list(tokens.pieces(document))
        assert "".join(pieces) == document
        assert [w for p in pieces for w in p.split()] == document.split()


@pytest.mark.parametrize("text, expected", [
    ("a" * 1000 + " b", "a" * 200 + " b"),
    ("一" * 1000, "一" * 1000),  # words of one character each
    ("a_b(c);" * 1000, "a_b(c);" * 1000),
    ("b " + "a" * 200, "b " + "a" * 200),
])  # fmt: skip
def test_only_overlong_words_are_cut(text: str, expected: str) -> None:
    assert corpus.clean(text, "a.txt", SourceSummary()) == expected


def test_overlong_words_do_not_slow_down_training_a_vocabulary(tmp_path: Path, text_config: Config) -> None:
    letters = np.random.default_rng(0).integers(97, 123, 100_000, dtype=np.uint8).tobytes().decode()
    lines = [letters * 10, "a" * 10**6, letters[:20] * 50_000, "x=[1];" * 150_000]
    (tmp_path / "lines.txt").write_text("\n".join([*lines, *["some words more"] * 200]))
    began = time.monotonic()
    load(
        text_config(
            source=str(tmp_path / "lines.txt"),
            cache=str(tmp_path),
            validation_share=0.5,
            max_overlap=1.0,
            max_unknown=1.0,
        )
    )
    assert time.monotonic() - began < 60, "takes 2 s; hours without the cut"


def test_pickled_samples_do_not_contain_the_data(text_config: Config) -> None:
    samples = load(text_config()).train
    before = samples.batch([0], [1])
    copy = pickle.loads(pickle.dumps(samples))
    assert len(pickle.dumps(samples)) < 2000
    assert torch.equal(copy.batch([0], [1])["input_ids"], before["input_ids"])


def test_parquet_files_and_a_local_folder_read_as_a_hub_dataset(
    tmp_path: Path, text_config: Config, cache_misses: list[str]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for part, count in (("train", 300), ("validation", 30)):
        rows = {"words": [f"{part} number {i} of some rows and more words" for i in range(count)], "other": [1] * count}
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{part}.parquet")
    shared: dict[str, Any] = {
        "column": "words",
        "cache": str(tmp_path / "cache"),
        "sequence_length": 16,
        "max_unknown": 1.0,
    }
    parquet = load(
        text_config(source=str(folder / "train.parquet"), validation=str(folder / "valid*.parquet"), **shared)
    )
    for _ in range(2):
        hub = load(text_config(source=str(folder), format="hub", validation="validation", **shared))
    assert cache_misses == ["_train", "_tokenize", "_tokenize"] * 2, (
        "the second load from the hub is found in the cache"
    )
    assert torch.equal(train_rows(hub)["input_ids"], train_rows(parquet)["input_ids"])
    assert len(hub.validation) == len(parquet.validation) > 0
    with pytest.raises(
        ConfigError, match=r"data.column: 'text': .*train.parquet has no such column; it has: words, other"
    ):
        load(text_config(source=str(folder / "train.parquet"), **{**shared, "column": "text"}))
    with pytest.raises(ConfigError, match=r"data.column: 'other': .* holds int64 there, not text"):
        load(text_config(source=str(folder / "train.parquet"), **{**shared, "column": "other"}))
    with pytest.raises(ConfigError, match=r"data.validation: 'test': datasets cannot load it"):
        load(text_config(source=str(folder), format="hub", validation="test", **shared))


@pytest.mark.parametrize("keys_, message", [
    ({"source": "lines.text"}, "data.source: '.*lines.text': no such file, folder or glob; did you mean .*lines.txt?"),
    ({"source": "empty"}, "data.source: '.*empty': no file in this folder is one of .txt"),
    ({"source": "script.py"}, "data.source: .*what is a .py file"),
    ({"source": "pictures"}, "is imagefolder, but data.kind is text"),
    ({"validation_share": 0.0}, "data.validation_share: 0.0: of 400 rows, 0 are held out"),
    ({"validation_share": 1.0}, "data.validation_share: 1.0: of 400 rows, 400 are held out and 0 are left"),
    ({"source": "one.txt"}, "of 1 rows, 1 are held out.*; name held-out data in data.validation"),
    ({"sequence_length": 100_000}, "data.sequence_length: 100000: the text does not fill one sequence"),
    ({"sequence_length": 2000}, "the held-out text does not fill one sequence.*validation_share"),
    ({"tokenizer": "./nowhere.txt"}, "data.tokenizer: './nowhere.txt': no such file or folder"),
    ({"tokenizer": "poor.txt"}, r"data.tokenizer: .*does not list \[PAD\] \[CLS\] \[SEP\] \[MASK\]"),
    ({"tokenizer": "latin.txt"}, "data.tokenizer: .*latin.txt': cannot be read: 'utf-8' codec"),
    ({"tokenizer": "twice.txt"}, "data.tokenizer: .*twice.txt': cannot be read: 'a' is on more than one line"),
    ({"tokenizer": "./a\0b"}, "data.tokenizer: .*is not a path: it holds a NUL byte"),
    ({"validation": "nowhere/"}, "data.validation: .*no such file, folder or glob"),
    ({"source": "a\0b.txt"}, "data.source: .*is not a path: it holds a NUL byte"),
    ({"source": "~nouser/a.txt"}, "data.source: '~nouser/a.txt': is not a path: Could not determine home"),
    ({"cache": "a\0b"}, "data.cache: .*is not a path: it holds a NUL byte"),
    ({"cache": "~nouser/cache"}, "data.cache: '~nouser/cache': is not a path: Could not determine home"),
    ({"source": "/dev/null"}, "data.source: '/dev/null': neither a file nor a folder"),
    ({"source": "void.txt"}, "data.source: .*void.txt': has no rows"),
    ({"source": "latin.txt"}, "has no rows with text; 1 unreadable rows: .*latin.txt, line 1: byte 0xe9 is not utf-8"),
    ({"source": "[al]*i*.txt"}, r"data.source: .*/latin.txt, line 1: byte 0xe9 is not utf-8; data.encoding names"),
    ({"source": "void.parquet"}, "void.parquet': has no rows with text; 1 empty files: left out"),
    ({"source": "rowless.parquet"}, "rowless.parquet': has no rows with text"),
    ({"source": "like*.parquet"}, r"like1.parquet holds struct<a: int64> there, not text"),
    ({"source": "like2.parquet", "column": "more"}, r"data.column: 'more': .* holds list<.*int64> there, not text"),
    ({"source": "like2.parquet", "column": "text"}, r"data.column: 'text': .* holds struct<a: int64> there, not text"),
])  # fmt: skip
def test_errors_name_the_key_to_change(
    corpus: Path, text_config: Config, tmp_path: Path, keys_: dict[str, Any], message: str
) -> None:
    shutil.copy(corpus / "lines.txt", tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    (tmp_path / "pictures" / "cat" / "a.png").touch()
    (tmp_path / "script.py").touch()
    (tmp_path / "one.txt").write_text("one line")
    (tmp_path / "void.txt").touch()
    (tmp_path / "void.parquet").touch()
    (tmp_path / "latin.txt").write_bytes("café\n".encode("latin-1"))
    (tmp_path / "twice.txt").write_text("\n".join([*tokenizer.SPECIAL, "a", "b", "a"]))
    struct = {"text": [{"a": 1}]}
    for name, rows in (("rowless", {"text": []}), ("like1", struct), ("like2", {**struct, "more": [[1]]})):
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "poor.txt").write_text("a\n[UNK]\nb\n")
    local = {
        k: str(tmp_path / v) if isinstance(v, str) and k != "column" and v[0] not in "./~" else v
        for k, v in keys_.items()
    }
    with pytest.raises((ConfigError, ConfigErrors), match=message):
        load(text_config(**{"source": str(tmp_path / "lines.txt"), "cache": str(tmp_path / "cache"), **local}))


def test_peek_prepares_nothing_and_finds_prepared_data(text_config: Callable[..., TextData], tmp_path: Path) -> None:
    config = text_config(cache=str(tmp_path / "cache"))
    assert peek(config) is None
    assert not list(tmp_path.rglob("tokens-*"))
    loaded, peeked = load(config), peek(config)
    assert peeked is not None
    assert (peeked.fingerprint, len(peeked.train)) == (loaded.fingerprint, len(loaded.train))
    assert peek(TextData(kind="text", source="owner/name", cache=str(tmp_path))) is None
    assert peek(text_config(source=str(tmp_path / "none.txt"))) is None


# The recipe bert-tiny trains on it in tests/packaging/test_wheel.py.
@pytest.mark.full
def test_builtin_python_docs(tmp_path: Path) -> None:
    config = TextData(kind="text", vocabulary_size=4096, cache=str(tmp_path))
    data = load(config)
    assert data.vocabulary_size == 4096
    assert len(data.train) > 2000
    assert len(data.validation) > 50
    key = next(tmp_path.glob("texts-*/key.json")).read_text()
    assert sys.version in json.loads(key)["source"].values(), "another Python has other documentation"
    text_of_row = data.tokenizer.decode(data.train.batch([100], [1])["input_ids"][0])
    assert "[CLS]" in text_of_row


def test_books_with_berts_vocabulary(shared_data: Path, tmp_path: Path) -> None:
    config = TextData(
        kind="text", source=str(shared_data / "books/validation.parquet"), cache=str(tmp_path), validation_share=0.2,
        tokenizer=str(shared_data / "vocab/bert-base-uncased-vocab.txt"),
    )  # fmt: skip
    data = load(config)
    assert data.vocabulary_size == 30522
    assert data.tokenizer.mask_token_id == 103
    assert data.tokenizer.tokenize("unaffable") == ["una", "##ffa", "##ble"]
    assert 4000 < len(data.train) < 7000


@pytest.mark.parametrize("change", [
    lambda text: b"\xef\xbb\xbf" + text,
    lambda text: text.replace(b"\n", b"\r\n"),
    lambda text: text.replace(b"\n", b"  \n") + b"\n\n",
    lambda text: text.rstrip(b"\n"),
])  # fmt: skip
def test_vocabulary_of_any_editor_is_read(
    tmp_path: Path, text_config: Config, change: Callable[[bytes], bytes]
) -> None:
    pieces = [*tokenizer.SPECIAL, *"abcdefghijklmnopqrstuvwxyz", *("##" + c for c in "abcdefghijklmnopqrstuvwxyz")]
    (tmp_path / "vocab.txt").write_bytes(change(("\n".join(pieces) + "\n").encode()))
    data = load(text_config(tokenizer=str(tmp_path / "vocab.txt"), cache=str(tmp_path / "cache")))
    assert data.vocabulary_size == len(pieces)
    assert data.tokenizer.get_vocab() == {piece: index for index, piece in enumerate(pieces)}
    assert data.tokenizer.tokenize("ab") == ["a", "##b"]


def test_several_sets_of_held_out_data(tmp_path: Path, text_config: Config, cache_misses: list[str]) -> None:
    for name, count in (("train", 300), ("books", 40), ("wiki", 30)):
        (tmp_path / f"{name}.txt").write_text(
            "\n".join(f"{name} number {i} of some words {i * i}" for i in range(count))
        )
    shared: dict[str, Any] = {
        "source": str(tmp_path / "train.txt"), "cache": str(tmp_path / "cache"), "sequence_length": 16, "max_unknown": 1.0,
    }  # fmt: skip
    sets = {name: str(tmp_path / f"{name}.txt") for name in ("wiki", "books")}
    data = load(text_config(validation=sets, **shared))
    assert list(data.held_out) == ["wiki", "books"]
    assert data.validation is data.held_out["wiki"], "the first one decides targets"
    assert data.summary is not None
    assert data.summary.rows_held_out == {"wiki": 30, "books": 40}
    assert data.summary.held_out["books"].files_read == 1
    assert cache_misses == ["_train", "_tokenize", "_tokenize", "_tokenize"]
    cache_misses.clear()
    load(text_config(validation={"books": sets["books"]}, **shared))
    assert not cache_misses, "each set is prepared by itself"
    sets["wiki"] = str(tmp_path / "train.txt")
    with pytest.raises(
        ConfigErrors, match=r"data.validation.wiki: 300 of 300 held-out rows .100.0%. are training rows"
    ):
        load(text_config(validation=sets, **shared))
