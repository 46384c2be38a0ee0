"""Text for masked language modelling: tokenized once, packed without padding, with new masks in every epoch.

On disk a corpus is one stream of tokens without special tokens. Row i for a sequence length of L tokens is
``[CLS] + stream[i (L - 2) : (i + 1) (L - 2)] + [SEP]``, so one preparation serves every sequence length.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import Dataset, sampling, tokenizer
from bellwether.trainer.data.cache import digest, prepared
from bellwether.trainer.data.sources import Source, locate, split
from bellwether.trainer.data.summary import DataSummary
from bellwether.trainer.data.text_facts import TextFacts
from bellwether.trainer.log import EVERY_RANK

if TYPE_CHECKING:
    from bellwether.trainer.data.text import TextData

log = logging.getLogger(__name__)

_REVISION = 3
_PIECE = 100_000  # characters; a longer document is split at white space, so that the tokenizer's threads share it
_CHUNK = 4_000_000  # characters tokenized at a time
# Runs of letters and digits that are longer than any word, such as base64. BERT's tokenizer replaces a word of more than
# 100 characters by [UNK], and training a vocabulary takes time quadratic in the length of a word. Each Chinese character is
# a word.
_IN_WORD = r"[^\W_\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]"
_LONG_WORD = re.compile(f"(?<!{_IN_WORD})({_IN_WORD}{{200}}){_IN_WORD}+")
_VALIDATION_MASKS = 0x6D61736B

Tokens = npt.NDArray[np.unsignedinteger[Any]]


@dataclass
class TextSamples:
    """Rows of a token stream. See `bellwether.trainer.data.Samples`.

    Attributes:
        path: a flat file of tokens, uint16 or uint32.
        sequence_length: L, in tokens, [CLS] and [SEP] included.
        masked: k, the number of tokens to predict in each row.
        fixed: give each row the same mask every time.
    """

    path: Path
    dtype: str
    sequence_length: int
    masked: int
    vocabulary_size: int
    cls: int
    sep: int
    mask: int
    fixed: bool
    _stream: Tokens | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return self.path.stat().st_size // np.dtype(self.dtype).itemsize // (self.sequence_length - 2)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None}  # each worker maps the file itself

    def batch(
        self, indices: Sequence[int] | npt.NDArray[np.int64], keys: Sequence[int] | npt.NDArray[np.int64]
    ) -> dict[str, Tensor]:
        rows = np.asarray(indices, dtype=np.int64)
        if self.fixed:
            keys = sampling.sample_keys(_VALIDATION_MASKS, rows)
        content = self.sequence_length - 2
        if self._stream is None:
            self._stream = np.memmap(self.path, dtype=self.dtype, mode="r")
        tokens = self._stream[rows[:, None] * content + np.arange(content)].astype(np.int64)

        # 3 random numbers per token: the order in which tokens are chosen, the treatment of a chosen token, a random token.
        choice, treatment, other = np.split(sampling.random_bits(keys, 3 * content), 3, axis=1)
        masked = np.sort(np.argsort(choice, axis=1, kind="stable")[:, : self.masked], axis=1)
        labels = np.take_along_axis(tokens, masked, axis=1)
        fraction = sampling.uniform(np.take_along_axis(treatment, masked, axis=1))
        random = (sampling.uniform(np.take_along_axis(other, masked, axis=1)) * self.vocabulary_size).astype(np.int64)
        # Devlin et al. 2018, section 3.1: 80 % [MASK], 10 % a random token, 10 % unchanged.
        inputs = np.where(fraction < 0.8, self.mask, np.where(fraction < 0.9, random, labels))
        np.put_along_axis(tokens, masked, inputs, axis=1)

        ids = np.empty((len(rows), self.sequence_length), dtype=np.int64)
        ids[:, 0], ids[:, 1:-1], ids[:, -1] = self.cls, tokens, self.sep
        return {
            "input_ids": torch.from_numpy(ids),
            "masked_positions": torch.from_numpy(masked + 1),
            "labels": torch.from_numpy(labels),
        }


def load(config: TextData) -> Dataset:
    """Prepares text. See `bellwether.trainer.data.load`."""
    source = locate(config)
    validation = locate(config, "data.validation") if config.validation is not None else None
    corpus = _Corpus(config, source, validation)
    words = tokenizer.load(config, corpus.key, corpus.train)
    size = max(words.get_vocab().values()) + 1
    dtype = "uint16" if size <= 2**16 else "uint32"
    key = {
        "revision": _REVISION, "corpus": corpus.key, "dtype": dtype,
        "validation": None if validation is None else validation.fingerprint,
        "tokenizer": digest(words.backend_tokenizer.to_str()),
    }  # fmt: skip
    entry = prepared(config.cache, "tokens", key, lambda folder: _tokenize(corpus, words, dtype, folder))

    def samples(part: str, fixed: bool) -> TextSamples:
        return TextSamples(
            entry / f"{part}.bin", dtype, config.sequence_length, config.masked_tokens, size,
            words.cls_token_id, words.sep_token_id, words.mask_token_id, fixed,
        )  # fmt: skip

    train, held_out = samples("train", False), samples("validation", True)
    for part, what, advice in (
        (train, "text", "more text"),
        (held_out, "held-out text", "hold out more, by data.validation_share or data.validation"),
    ):
        if not len(part):
            problem = f"the {what} does not fill one sequence"
            raise ConfigError(
                "data.sequence_length", config.sequence_length, problem, f"use shorter sequences, or {advice}"
            )
    summary = DataSummary.read(entry)
    summary.source.add(source.listing)
    if validation is not None:
        summary.held_out["validation"].add(validation.listing)
    return Dataset(train, held_out, vocabulary_size=size, tokenizer=words, fingerprint=entry.name, summary=summary)


class _Corpus:
    """The texts of both splits, read once, when they are first needed."""

    def __init__(self, config: TextData, source: Source, validation: Source | None) -> None:
        self.config, self.source, self.validation_source = config, source, validation
        self.key = {
            "source": source.fingerprint, "column": config.column,
            "share": None if validation is not None else config.validation_share,
        }  # fmt: skip
        self._parts: tuple[Any, Any] | None = None

    def train(self) -> Iterator[str]:
        return _texts(self._open()[0], self.config.column)

    def validation(self) -> Iterator[str]:
        return _texts(self._open()[1], self.config.column)

    def _open(self) -> tuple[Any, Any]:
        if self._parts is None:
            log.info("reading data.source %s", self.config.source, extra=EVERY_RANK)
            rows = self._checked(self.source.open(), "data.source")
            if self.validation_source is not None:
                self._parts = rows, self._checked(self.validation_source.open(), "data.validation")
            else:
                train, held_out = split(len(rows), self.config)
                self._parts = rows.select(train), rows.select(held_out)
        return self._parts

    def _checked(self, rows: Any, key: str) -> Any:
        column = self.config.column
        if column not in rows.column_names:
            have = ", ".join(rows.column_names)
            raise ConfigError("data.column", column, f"no such column in {key}", f"it has: {have}")
        feature = rows.features[column]
        column_type = getattr(feature, "dtype", feature)  # lists and structs have none
        if column_type not in ("string", "large_string"):
            raise ConfigError("data.column", column, f"holds {column_type}, not text", "name another column")
        if not len(rows):
            raise ConfigError(key, getattr(self.config, key.removeprefix("data.")), "has no rows", "name other data")
        return rows.select_columns([column])


def _texts(rows: Any, column: str) -> Iterator[str]:
    for batch in rows.iter(batch_size=100):
        for text in batch[column]:
            yield _LONG_WORD.sub(r"\1", text or "")


def _tokenize(corpus: _Corpus, words: Any, dtype: str, folder: Path) -> None:
    from tokenizers import Tokenizer

    began = time.monotonic()
    # A copy, because the exported tokenizer must keep its settings. The characters "[MASK]" in a text are tokenized as text.
    encoder = Tokenizer.from_str(words.backend_tokenizer.to_str())
    encoder.no_padding()
    encoder.no_truncation()
    encoder.encode_special_tokens = True
    facts = {}
    for part, texts in (("train", corpus.train()), ("validation", corpus.validation())):
        facts[part] = found = TextFacts(words.unk_token_id)
        reported = began
        with (folder / f"{part}.bin").open("wb") as file:
            for chunk in _chunks(found.reading(texts)):
                for encoding in encoder.encode_batch_fast(chunk, add_special_tokens=False):
                    ids = np.array(encoding.ids, dtype=dtype)
                    file.write(ids.tobytes())
                    found.count(ids)
                if time.monotonic() - reported > 10:
                    reported = time.monotonic()
                    log.info("tokenized %s tokens of the %s split", f"{found.tokens:,}", part, extra=EVERY_RANK)
    _summarize(corpus, facts["train"], facts["validation"]).write(folder)
    seconds = time.monotonic() - began
    sizes = f"{facts['train'].tokens:,} tokens to train on and {facts['validation'].tokens:,} held out"
    log.info("%s, tokenized in %.1f s: %s", sizes, seconds, folder.parent, extra=EVERY_RANK)


def _summarize(corpus: _Corpus, train: TextFacts, validation: TextFacts) -> DataSummary:
    summary = DataSummary("text", corpus.config.source, train.summary())
    if corpus.validation_source is not None:
        summary.held_out["validation"] = validation.summary()
    else:
        summary.source.add(validation.summary())
    summary.rows_train, summary.rows_held_out = train.rows, {"validation": validation.rows}
    summary.duplicates_train, summary.overlap = train.duplicates(), {"validation": validation.also_in(train)}
    return summary


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        for piece in _pieces(text):
            chunk.append(piece)
            size += len(piece)
            if size >= _CHUNK:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def _pieces(text: str) -> Iterator[str]:
    while len(text) > _PIECE:
        cut = max(text.rfind(space, 1, _PIECE) for space in " \n\t")
        if cut < 1:
            break  # no white space to split at
        yield text[:cut]
        text = text[cut:]
    yield text
