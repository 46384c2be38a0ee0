"""Text in pairs of segments of whole sentences, padded: ``data: {next_sentence: true, sentences: ...}``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bellwether.trainer.data import masking, sampling
from bellwether.trainer.data.packing import Stream
from bellwether.trainer.data.sentence_pairs import SentencePairs


@dataclass
class SentenceSamples:
    """Pairs that `sentence_pairs` makes. See `bellwether.trainer.data.Samples`.

    Batches are those of `TextSamples` with pairs, and have ``attention_mask`` int64 [B, L] and ``masked_counts`` int64 [B]: of the k
    masked tokens of a row, its first ones are predicted. The others are at position 0.

    Attributes:
        stream: the tokens, without separators.
        pairs: which of them make a pair.
        sequence_length: L, in tokens, [CLS], [SEP] and padding included.
        masked: k, the most tokens to predict in a row.
        mask_share: the share of a row's tokens to predict; [CLS] and [SEP] count, as in BERT.
        pad: the token behind a pair.
        special, fixed, continuing: as in `TextSamples`.
    """

    stream: Stream
    pairs: SentencePairs
    sequence_length: int
    masked: int
    mask_share: float
    vocabulary_size: int
    cls: int
    sep: int
    mask: int
    pad: int
    special: tuple[int, ...]
    fixed: bool
    continuing: masking.Flags | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def path(self) -> Path:
        """The file of the tokens."""
        return self.stream.path

    def batch(
        self, indices: Sequence[int] | npt.NDArray[np.int64], keys: Sequence[int] | npt.NDArray[np.int64]
    ) -> dict[str, Tensor]:
        rows = np.asarray(indices, dtype=np.int64)
        if self.fixed:
            keys = sampling.sample_keys(masking.FIXED, rows)
        found = self.pairs.draw(rows, keys)
        first, both = found.first_length[:, None], (found.first_length + found.second_length)[:, None]
        places = np.arange(self.pairs.content + 1)  # the last one for what a short row does not mask
        is_pad = places >= both
        positions = np.where(places < first, found.first[:, None] + places, found.second[:, None] + places - first)
        tokens = np.where(is_pad, self.pad, self.stream.read(np.where(is_pad, 0, positions)))

        choice, treatment, other = np.split(sampling.random_bits(keys, 3 * len(places)), 3, axis=1)
        counts = np.rint((both[:, 0] + 3) * self.mask_share).astype(np.int64)
        counts = np.clip(counts, 1, np.minimum(both[:, 0], self.masked))
        continues = None if self.continuing is None else self.continuing[tokens]
        if continues is not None:
            continues[np.arange(len(rows)), found.first_length] = False
        masked = masking.choose(choice, self.masked, is_pad, continues, counts)
        labels = np.take_along_axis(tokens, masked, axis=1)
        random = masking.random_tokens(np.take_along_axis(other, masked, axis=1), self.vocabulary_size, self.special)
        inputs = masking.replace(labels, np.take_along_axis(treatment, masked, axis=1), random, self.mask)
        np.put_along_axis(tokens, masked, inputs, axis=1)

        columns = np.arange(self.sequence_length)
        source = np.clip(np.where(columns <= first, columns - 1, columns - 2), 0, self.pairs.content)
        ids = np.take_along_axis(tokens, source, axis=1)
        ids = np.where((columns == first + 1) | (columns == both + 2), self.sep, ids)
        ids = np.where(columns > both + 2, self.pad, ids)
        ids[:, 0] = self.cls
        is_used = np.arange(self.masked) < counts[:, None]
        batch = {
            "input_ids": ids,
            "masked_positions": np.where(is_used, masked + 1 + (masked >= first), 0),
            "labels": np.where(is_used, labels, 0),
            "masked_counts": counts,
            "token_type_ids": ((columns > first + 1) & (columns <= both + 2)).astype(np.int64),
            "attention_mask": (columns <= both + 2).astype(np.int64),
            "next_sentence_label": found.is_random.astype(np.int64),
        }
        return {name: torch.from_numpy(array) for name, array in batch.items()}
