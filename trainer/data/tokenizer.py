"""The tokenizer: WordPiece trained on the corpus, a vocabulary file, a tokenizer folder, or one from the hub."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import word_vocabulary
from bellwether.trainer.data.cache import digest, local_path, prepared
from bellwether.trainer.data.transient import transient_cause
from bellwether.trainer.log import EVERY_RANK

if TYPE_CHECKING:
    from bellwether.trainer.data.plain_text import PlainText
    from bellwether.trainer.data.token_stream import TokenStreamData
    from bellwether.trainer.data.tokenized import TokenizedData

log = logging.getLogger(__name__)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# A vocabulary is trained on at most this many characters. More would hardly change it, but need more memory.
_CHARACTERS = 200_000_000
_REVISION = 2


Place = dict[str, Any]  #: where a tokenizer is, for `open_prepared`


def load(config: PlainText, corpus_key: dict[str, Any], corpus: Callable[[], Iterable[str]]) -> tuple[Any, Place]:
    """Loads or trains the fast tokenizer of transformers that ``data.tokenizer`` names; also returns where it is stored.

    Args:
        corpus_key: identifies the training rows, for the cache.
        corpus: reads the training rows; only called to train a vocabulary that is not cached.

    Raises:
        ConfigError: if it cannot be loaded, or lacks a special token that is needed.
    """
    if config.tokenizer == "words" and config.tokenizer in config.trained:
        place = word_vocabulary.load(cast("TokenStreamData", config), corpus_key, corpus)
        return open_prepared(place), place
    if config.tokenizer == "train":
        from tokenizers import __version__ as version

        key = {
            "revision": _REVISION, "tokenizers": version, "corpus": corpus_key,
            "vocabulary_size": config.vocabulary_size, "lowercase": config.lowercase,
        }  # fmt: skip
        entry = prepared(config.cache, "wordpiece", key, lambda folder: _train(config, corpus(), folder / "vocab.txt"))
        place = {"vocabulary": str(entry / "vocab.txt"), "lowercase": config.lowercase}
        return open_prepared(place), place
    words = given(config)
    return words, stored(config, words)


def stored(config: PlainText | TokenizedData, words: Any) -> Place:
    """A copy in the cache: asking the hub for a tokenizer takes a dozen requests, which one process a machine makes."""
    key = {"tokenizer": words.backend_tokenizer.to_str(), "class": type(words).__name__, "revision": _REVISION}
    entry = prepared(config.cache, "tokenizer", {"digest": digest(key)}, lambda folder: _save(words, folder))
    return {"folder": str(entry)}


def open_prepared(place: Place) -> Any:
    """The tokenizer that `load` has loaded."""
    if "vocabulary" in place:
        return _from_vocabulary(Path(place["vocabulary"]), place["lowercase"])
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(place["folder"])


def _save(words: Any, folder: Path) -> None:
    words.save_pretrained(folder)


def given(config: PlainText | TokenizedData) -> Any:
    """Loads the tokenizer that ``data.tokenizer`` names.

    Raises:
        ConfigError: if it cannot be loaded, or lacks a special token that is needed.
    """
    path = local_path("data.tokenizer", config.tokenizer)
    if path.is_file():
        advice = "give a vocabulary file of BERT's, one token per line"
        try:
            loaded = _from_vocabulary(path, config.lowercase)
        except ValueError as error:
            raise ConfigError("data.tokenizer", config.tokenizer, f"cannot be read: {error}", advice) from error
        vocabulary = loaded.get_vocab()
        missing = [token for token in SPECIAL if token not in vocabulary or vocabulary[token] >= loaded.vocab_size]
        if missing:
            raise ConfigError("data.tokenizer", config.tokenizer, f"does not list {' '.join(missing)}", advice)
        return loaded
    if not path.exists() and config.tokenizer.startswith(("/", ".", "~")):
        raise ConfigError(
            "data.tokenizer", config.tokenizer, "no such file or folder", "write train, or correct the path"
        )
    needed = getattr(config, "special_tokens", ("cls", "sep", "mask"))
    loaded = _pretrained(str(path) if path.exists() else config.tokenizer, config)
    missing = [name for name in needed if getattr(loaded, f"{name}_token_id") is None]
    if missing or not loaded.is_fast:
        problem = "is not a fast tokenizer" if not loaded.is_fast else f"has no {' and no '.join(missing)} token"
        raise ConfigError("data.tokenizer", config.tokenizer, problem, "name one made for masked language modelling")
    return loaded


def _pretrained(name: str, config: PlainText | TokenizedData) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:
        if transient_cause(error):
            raise
        text = " ".join(str(error).split())[:300]
        problem = f"transformers cannot load it: {type(error).__name__}: {text}"
        advice = "write train, or name a vocabulary file, a folder with a saved tokenizer, or one of the hub's"
        raise ConfigError("data.tokenizer", config.tokenizer, problem, advice) from error


def _from_vocabulary(path: Path, lowercase: bool) -> Any:
    """BERT's tokenizer with the vocabulary of a file: one token per line, in the order of their numbers."""
    from transformers import BertTokenizerFast

    # White space is no part of a token: CR at the ends of lines, or spaces that an editor has left.
    text = path.read_bytes().decode("utf-8-sig").rstrip()
    lines = [line.rstrip(" \t\r") for line in text.split("\n")]
    vocabulary = {line: index for index, line in enumerate(lines)}
    if len(vocabulary) < len(lines):
        twice = next(line for index, line in enumerate(lines) if vocabulary[line] != index)
        raise ValueError(f"{twice!r} is on more than one line")
    return BertTokenizerFast(vocab=vocabulary, do_lower_case=lowercase)


def _train(config: PlainText, corpus: Iterable[str], file: Path) -> None:
    """Trains a WordPiece vocabulary and writes it to a file, one token per line.

    `tokenizers` numbers the pieces ``##c`` in the order of a randomly seeded hash map and breaks ties between merges
    by these numbers, so two calls give two vocabularies. Passing all one-character pieces as special tokens fixes the
    numbers, and thus makes the result reproducible.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = list(_first_characters(corpus, _CHARACTERS))
    alphabet = _alphabet(map(trained.normalizer.normalize_str, texts), config.vocabulary_size // 4)
    size, characters = f"{config.vocabulary_size:,}", f"{sum(map(len, texts)):,}"
    log.info("training a vocabulary of %s from %s characters", size, characters, extra=EVERY_RANK)
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocabulary_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=SPECIAL + ["##" + c for c in alphabet],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    trained.train_from_iterator(texts, trainer)
    vocabulary = trained.get_vocab()
    if len(vocabulary) < config.vocabulary_size:
        actual = f"{len(vocabulary):,}"
        log.warning("the corpus has only %s pieces that occur twice, not %s", actual, size, extra=EVERY_RANK)
    file.write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n", encoding="utf-8")


def _first_characters(corpus: Iterable[str], limit: int) -> Iterator[str]:
    seen = 0
    for text in corpus:
        if seen >= limit:
            log.info("the vocabulary is trained on the first %s characters", f"{seen:,}", extra=EVERY_RANK)
            return
        seen += len(text)
        yield text


def _alphabet(texts: Iterable[str], limit: int) -> list[str]:
    """The most frequent characters, in the order of their code points. Words with any other character become [UNK]."""
    counts = np.zeros(0x110000, dtype=np.int64)
    for text in texts:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        text_counts = np.bincount(points)
        counts[: len(text_counts)] += text_counts
    most_frequent = np.argsort(-counts, kind="stable")[: min(limit, 1000)]
    return [chr(point) for point in sorted(most_frequent) if counts[point] and not chr(point).isspace()]
