"""A vocabulary of whole words: those of the training text, as the papers on word-level language models have it.

All other words are ``<unk>``. ``<eos>`` ends each document; corpora such as the Penn Treebank have a sentence on each line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data.cache import prepared
from bellwether.trainer.log import EVERY_RANK

if TYPE_CHECKING:
    from bellwether.trainer.data.token_stream import TokenStreamData

log = logging.getLogger(__name__)

_REVISION = 1
UNKNOWN, END = "<unk>", "<eos>"


def load(config: TokenStreamData, corpus_key: dict[str, Any], corpus: Callable[[], Iterable[str]]) -> dict[str, Any]:
    """The place of the tokenizer in the cache; arguments as of `bellwether.trainer.data.tokenizer.load`."""
    from tokenizers import __version__ as version

    key = {
        "revision": _REVISION, "tokenizers": version, "corpus": corpus_key, "words": config.words,
        "vocabulary_size": config.vocabulary_size, "minimum_count": config.minimum_count, "lowercase": config.lowercase,
    }  # fmt: skip
    return {"folder": str(prepared(config.cache, "words", key, lambda folder: train(config, corpus(), folder)))}


def train(config: TokenStreamData, corpus: Iterable[str], folder: Path) -> None:
    """Counts the words of a corpus and saves a tokenizer of the most frequent ones, the most frequent first.

    Raises:
        ConfigError: if no word is frequent enough.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    counted = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    if config.lowercase:
        counted.normalizer = normalizers.BertNormalizer(lowercase=True)
    split = {"whitespace": pre_tokenizers.WhitespaceSplit, "punctuation": pre_tokenizers.BertPreTokenizer}
    counted.pre_tokenizer = split[config.words]()
    # Words of equal count are in the order of their letters: the vocabulary is a function of the corpus.
    trainer = trainers.WordLevelTrainer(
        vocab_size=config.vocabulary_size, min_frequency=config.minimum_count, show_progress=False
    )
    counted.train_from_iterator(corpus, trainer)
    frequent = counted.get_vocab()
    # Corpora in which rare words were replaced have <unk> as a word.
    words = [word for word in sorted(frequent, key=frequent.__getitem__) if word not in (UNKNOWN, END)]
    words = words[: config.vocabulary_size - 2]
    if not words:
        problem = f"no word occurs {config.minimum_count:,} times"
        raise ConfigError("data.minimum_count", config.minimum_count, problem, "lower it, or name a larger text")
    vocabulary = {word: index for index, word in enumerate([UNKNOWN, END, *words])}
    counted.model = models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN)
    log.info("a vocabulary of %s words, %s and %s", f"{len(words):,}", UNKNOWN, END, extra=EVERY_RANK)
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=counted, unk_token=UNKNOWN, eos_token=END)
    tokenizer.save_pretrained(folder)
