"""Text for masked language modelling: tokenized once, packed without padding, with new masks in every epoch.

Row i for a sequence length of L tokens is ``[CLS] + stream[i (L - 2) : (i + 1) (L - 2)] + [SEP]``. `packing` says what the stream
is, and `masking` which tokens of a row are masked. `pairs` makes rows of two segments for next-sentence prediction; of whole
sentences, `sentence_samples`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import (
    Dataset,
    masking,
    pairs,
    sampling,
    sentence_pairs,
    text_sources,
    text_summary,
    tokenizer,
    tokens,
)
from bellwether.trainer.data.cache import digest
from bellwether.trainer.data.corpus import load as read
from bellwether.trainer.data.packing import Stream
from bellwether.trainer.data.sentence_pairs import SentencePairs
from bellwether.trainer.data.sentence_samples import SentenceSamples
from bellwether.trainer.data.sources import split
from bellwether.trainer.data.summary import DataSummary, SourceSummary

if TYPE_CHECKING:
    from bellwether.trainer.data.plain_text import PlainText
    from bellwether.trainer.data.text import TextData


@dataclass
class TextSamples:
    """Rows of a token stream. See `bellwether.trainer.data.Samples`.

    Attributes:
        stream: the tokens.
        sequence_length: L, in tokens, [CLS] and [SEP] included.
        masked: k, the number of tokens to predict in each row.
        special: tokens that a random replacement is not drawn from, ascending.
        fixed: give each row the same mask every time.
        apart: keep attention inside a document: batches also have ``documents`` int64 [B, L], the number of each token's document
            in its row, and ``position_ids`` int64 [B, L], which restart at each document.
        pairs: rows are pairs of segments, for next-sentence prediction: batches also have ``token_type_ids`` int64 [B, L] and
            ``next_sentence_label`` int64 [B], 1 where the second segment is from another document.
        continuing: for whole-word masking, the tokens that continue a word.
    """

    stream: Stream
    sequence_length: int
    masked: int
    vocabulary_size: int
    cls: int
    sep: int
    mask: int
    special: tuple[int, ...]
    fixed: bool
    apart: bool = False
    pairs: bool = False
    continuing: masking.Flags | None = None

    def __len__(self) -> int:
        return len(self.stream) // self.content

    @property
    def path(self) -> Path:
        """The file of the tokens."""
        return self.stream.path

    @property
    def content(self) -> int:
        """The number of tokens of a row without [CLS] and [SEP]."""
        return self.sequence_length - (3 if self.pairs else 2)

    def batch(
        self, indices: Sequence[int] | npt.NDArray[np.int64], keys: Sequence[int] | npt.NDArray[np.int64]
    ) -> dict[str, Tensor]:
        rows = np.asarray(indices, dtype=np.int64)
        if self.fixed:
            keys = sampling.sample_keys(masking.FIXED, rows)
        content = self.content
        positions = rows[:, None] * content + np.arange(content)
        segments = None
        if self.pairs:
            segments = pairs.draw(self.stream, positions, keys)
            positions = segments.positions
        tokens = self.stream.read(positions)

        # 3 random numbers per token: the order in which tokens are chosen, the treatment of a chosen token, a random token.
        choice, treatment, other = np.split(sampling.random_bits(keys, 3 * content), 3, axis=1)
        separators = None if self.stream.separator is None else tokens == self.stream.separator
        continues = None if self.continuing is None else self.continuing[tokens]
        if continues is not None and segments is not None:
            continues[np.arange(len(rows)), segments.first] = False
        masked = masking.choose(choice, self.masked, separators, continues)
        labels = np.take_along_axis(tokens, masked, axis=1)
        random = masking.random_tokens(np.take_along_axis(other, masked, axis=1), self.vocabulary_size, self.special)
        inputs = masking.replace(labels, np.take_along_axis(treatment, masked, axis=1), random, self.mask)
        np.put_along_axis(tokens, masked, inputs, axis=1)

        ids = np.empty((len(rows), self.sequence_length), dtype=np.int64)
        ids[:, 0], ids[:, -1] = self.cls, self.sep
        batch: dict[str, npt.NDArray[np.int64]] = {}
        if segments is None:
            ids[:, 1:-1] = tokens
            masked = masked + 1
            if self.apart:
                batch = self._documents(positions)
        else:
            ids[:, 1:-1] = pairs.joined(tokens, segments.first, self.sep)
            masked = masked + 1 + (masked >= segments.first[:, None])
            types = np.arange(self.sequence_length) > segments.first[:, None] + 1
            batch = {
                "token_type_ids": types.astype(np.int64),
                "next_sentence_label": segments.is_random.astype(np.int64),
            }
        batch = {"input_ids": ids, "masked_positions": masked, "labels": labels, **batch}
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _documents(self, positions: sampling.Integers) -> dict[str, npt.NDArray[np.int64]]:
        """[CLS] belongs to the first document of its row, and the last [SEP] to the last."""
        found = self.stream.document(positions)
        found = np.concatenate([found[:, :1], found, found[:, -1:]], axis=1) - found[:, :1]
        starts = np.diff(found, axis=1, prepend=-1) != 0
        places = np.arange(self.sequence_length)
        return {"documents": found, "position_ids": places - np.maximum.accumulate(np.where(starts, places, 0), axis=1)}


def prepare(config: PlainText) -> dict[str, Any]:
    """Prepares text. See `bellwether.trainer.config.schema.data.DataConfig.prepare`."""
    source = text_sources.locate(config, "data.source", config.source)
    corpus = read(config, source)
    sources = {name: text_sources.locate(config, key, value) for name, key, value in config.held_out_keys()}
    held_out = {name: read(config, each) for name, each in sources.items()}
    mask = None
    if not held_out:
        mask = np.zeros(len(corpus), dtype=np.bool_)
        mask[split(len(corpus), config)[1]] = True
    key = {"corpus": corpus.name, "share": None if mask is None else config.validation_share}
    words, place = tokenizer.load(config, key, lambda: corpus.texts(None if mask is None else ~mask))
    size = max(words.get_vocab().values()) + 1
    entry = tokens.prepare(config, corpus, words, size, mask)
    entries = {name: tokens.prepare(config, each, words, size, None) for name, each in held_out.items()}
    summary = text_summary.load(config, corpus, held_out, mask, entry, entries)
    summary.source.add(source.listing)
    for name, each in sources.items():
        summary.held_out[name].add(each.listing)
    files = {name: str(each / "train.bin") for name, each in entries.items()}
    names = sorted([entry.name, *(each.name for each in entries.values())])
    facts: dict[str, Any] = {
        "train": str(entry / "train.bin"), "held_out": files or {"validation": str(entry / "held_out.bin")},
        "vocabulary_size": size, "tokenizer": place,
    }  # fmt: skip
    if getattr(config, "sentences", None) is not None:
        parts: dict[str, SourceSummary | None] = {facts["train"]: summary.source}
        parts |= {file: summary.held_out.get(name) for name, file in facts["held_out"].items()}
        plans = {file: sentence_pairs.prepare(config, Path(file), part) for file, part in parts.items()}
        facts["pairs"] = {file: str(plan) for file, plan in plans.items()}
        names += sorted(plan.name for plan in plans.values())
    return {**facts, "fingerprint": f"text-{digest(names)}", "summary": summary.to_json()}


def open_prepared(config: TextData, facts: dict[str, Any]) -> Dataset:
    """The text that `prepare` has prepared.

    Raises:
        ConfigError: if a part of it does not fill one sequence, or has too few documents.
    """
    words, size = tokenizer.open_prepared(facts["tokenizer"]), facts["vocabulary_size"]
    continuing = None
    if config.whole_words:
        continuing = masking.continuing_tokens(words, size)
        if continuing is None:
            problem = "the tokenizer does not mark which tokens continue a word"
            raise ConfigError("data.whole_words", True, problem, "write false, or name another data.tokenizer")

    special = tuple(sorted(words.all_special_ids)) if config.random_tokens == "ordinary" else ()
    named = {"cls": words.cls_token_id, "sep": words.sep_token_id, "mask": words.mask_token_id}

    def samples(file: str, fixed: bool) -> TextSamples | SentenceSamples:
        length, masked = config.sequence_length, config.masked_tokens
        if config.sentences is not None:
            return SentenceSamples(
                Stream(Path(file), tokens.dtype(size)), SentencePairs(Path(file), Path(facts["pairs"][file]), length - 3),
                length, masked, config.mask_share, size, **named, pad=words.pad_token_id or 0, special=special, fixed=fixed,
                continuing=continuing,
            )  # fmt: skip
        return TextSamples(
            Stream(Path(file), tokens.dtype(size), None if config.packing == "stream" else words.sep_token_id),
            length, masked, size, **named, special=special, fixed=fixed, apart=config.packing == "documents",
            pairs=config.next_sentence, continuing=continuing,
        )  # fmt: skip

    train = samples(facts["train"], False)
    parts = {name: samples(file, True) for name, file in facts["held_out"].items()}
    _check_length(config, train, "text", "more text")
    for part in parts.values():
        _check_length(config, part, "held-out text", "hold out more, by data.validation_share or data.validation")
    summary = DataSummary.from_json(facts["summary"]) if "summary" in facts else None
    return Dataset(
        train, next(iter(parts.values())), vocabulary_size=size, tokenizer=words, fingerprint=facts["fingerprint"],
        summary=summary, next_sentence=config.next_sentence, held_out=parts if len(parts) > 1 else {},
    )  # fmt: skip


def _check_length(config: TextData, samples: TextSamples | SentenceSamples, what: str, advice: str) -> None:
    if not len(samples):
        problem = f"the {what} does not fill one sequence"
        advice = f"use shorter sequences, or {advice}"
        raise ConfigError("data.sequence_length", config.sequence_length, problem, advice)
    if config.next_sentence and samples.stream.documents < 2:
        problem = "next-sentence prediction draws segments from other documents, and there is one"
        raise ConfigError("data.next_sentence", True, problem, "name text of several documents; see data.documents")
