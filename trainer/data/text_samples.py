"""Text for masked language modelling: tokenized once, packed without padding, with new masks in every epoch.

On disk a corpus is one stream of tokens without special tokens. Row i for a sequence length of L tokens is
``[CLS] + stream[i (L - 2) : (i + 1) (L - 2)] + [SEP]``, so one preparation serves every sequence length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import Dataset, sampling, text_sources, text_summary, tokenizer, tokens
from bellwether.trainer.data.cache import digest
from bellwether.trainer.data.corpus import load as read
from bellwether.trainer.data.sources import split

if TYPE_CHECKING:
    from bellwether.trainer.data.text import TextData

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
    source = text_sources.locate(config, "data.source", config.source)
    corpus = read(config, source)
    sources = {name: text_sources.locate(config, key, value) for name, key, value in config.held_out_keys()}
    held_out = {name: read(config, each) for name, each in sources.items()}
    mask = None
    if not held_out:
        mask = np.zeros(len(corpus), dtype=np.bool_)
        mask[split(len(corpus), config)[1]] = True
    key = {"corpus": corpus.name, "share": None if mask is None else config.validation_share}
    words = tokenizer.load(config, key, lambda: corpus.texts(None if mask is None else ~mask))
    size = max(words.get_vocab().values()) + 1
    entry = tokens.prepare(config, corpus, words, size, mask)
    entries = {name: tokens.prepare(config, each, words, size, None) for name, each in held_out.items()}
    summary = text_summary.load(config, corpus, held_out, mask, entry, entries)
    summary.source.add(source.listing)
    for name, each in sources.items():
        summary.held_out[name].add(each.listing)

    def samples(path: Path, fixed: bool) -> TextSamples:
        return TextSamples(
            path, tokens.dtype(size), config.sequence_length, config.masked_tokens, size,
            words.cls_token_id, words.sep_token_id, words.mask_token_id, fixed,
        )  # fmt: skip

    train = samples(entry / "train.bin", False)
    parts = {name: samples(each / "train.bin", True) for name, each in entries.items()}
    parts = parts or {"validation": samples(entry / "held_out.bin", True)}
    for part, what, advice in (
        (train, "text", "more text"),
        *(
            (part, "held-out text", "hold out more, by data.validation_share or data.validation")
            for part in parts.values()
        ),
    ):
        if not len(part):
            problem = f"the {what} does not fill one sequence"
            raise ConfigError(
                "data.sequence_length", config.sequence_length, problem, f"use shorter sequences, or {advice}"
            )
    names = sorted([entry.name, *(each.name for each in entries.values())])
    return Dataset(
        train, next(iter(parts.values())), vocabulary_size=size, tokenizer=words, fingerprint=f"text-{digest(names)}",
        summary=summary,
    )  # fmt: skip
