"""Counts of a stream of texts: documents, lengths, tokens, unknown tokens, and hashes of the content to find duplicates."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bellwether.trainer.data.summary import SourceSummary


class TextFacts:
    """The counts of one split.

    Args:
        unknown: number of the token ``[UNK]``; None if the tokenizer has none.
    """

    def __init__(self, unknown: int | None) -> None:
        self._unknown = unknown
        self.rows, self.tokens, self._unknown_tokens = 0, 0, 0
        self._empty, self._longest, self._shortest = 0, 0, 0
        self._lengths: Counter[int] = Counter()  # number of documents of 2^(n-1) to 2^n - 1 characters
        self._hashes = array("Q")

    def reading(self, texts: Iterable[str]) -> Iterator[str]:
        """The same texts, counted."""
        for text in texts:
            self.rows += 1
            length = len(text)
            if not text.strip():
                self._empty += 1
            else:
                self._longest = max(self._longest, length)
                self._shortest = min(self._shortest or length, length)
                self._lengths[length.bit_length()] += 1
                self._hashes.append(content_hash(text))
            yield text

    def count(self, ids: npt.NDArray[Any]) -> None:
        """Count the tokens of a text, or of a part of one."""
        self.tokens += len(ids)
        if self._unknown is not None:
            self._unknown_tokens += int(np.count_nonzero(ids == self._unknown))

    def duplicates(self) -> int:
        """Rows whose content an earlier row has."""
        hashes = np.asarray(self._hashes)
        return len(hashes) - len(np.unique(hashes))

    def also_in(self, other: TextFacts) -> int:
        """Rows whose content a row of another split has."""
        return int(np.isin(np.asarray(self._hashes), np.asarray(other._hashes)).sum())

    def summary(self) -> SourceSummary:
        lengths = {
            f"below {2**n:,}": self._lengths[n]
            for n in range(min(self._lengths, default=0), max(self._lengths, default=-1) + 1)
        }
        summary = SourceSummary(
            rows=self.rows, documents=self.rows - self._empty, tokens=self.tokens, unknown_tokens=self._unknown_tokens,
            longest=self._longest, shortest=self._shortest, histogram_of="documents by characters", histogram=lengths,
        )  # fmt: skip
        if self._empty:
            summary.note("empty rows", "left out", count=self._empty)
        return summary


def content_hash(text: str) -> int:
    """64 bits of a hash of a text without the white space around it."""
    content = text.strip().encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
