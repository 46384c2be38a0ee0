"""A stream of tokens as rows without padding, with or without a separator behind each document.

On disk a corpus is one stream of tokens without special tokens, beside the ends of its documents. The separators are added where
rows are read, so one preparation serves every packing and every sequence length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bellwether.trainer.data.sampling import Integers

Tokens = npt.NDArray[np.unsignedinteger[Any]]


@dataclass
class Stream:
    """The tokens of a corpus, mapped from disk. Position p of the stream is a token or, where ``separator`` is set, possibly that.

    Attributes:
        path: a flat file of tokens; the file ``.ends`` beside it has the number of tokens before the end of each document.
        dtype: uint16 or uint32.
        separator: the token behind each document; None: none.
    """

    path: Path
    dtype: str
    separator: int | None = None
    _tokens: Tokens | None = field(default=None, repr=False)
    _ends: Integers | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokens": None, "_ends": None}  # each worker maps the files itself

    def __len__(self) -> int:
        count = self.path.stat().st_size // np.dtype(self.dtype).itemsize
        return count if self.separator is None else count + self.documents

    @property
    def documents(self) -> int:
        """The number of documents that have tokens."""
        return ends_path(self.path).stat().st_size // 8

    @property
    def ends(self) -> Integers:
        """The position behind each document, its separator included."""
        if self._ends is None:
            ends = np.fromfile(ends_path(self.path), dtype=np.int64)
            self._ends = ends if self.separator is None else ends + np.arange(1, len(ends) + 1)
        return self._ends

    def read(self, positions: Integers) -> Integers:
        """The tokens at some positions, separators among them."""
        if self._tokens is None:
            self._tokens = np.memmap(self.path, dtype=self.dtype, mode="r")
        if self.separator is None:
            return self._tokens[positions].astype(np.int64)
        document = self.document(positions)
        is_separator = positions == self.ends[document] - 1
        found = self._tokens[np.where(is_separator, 0, positions - document)].astype(np.int64)
        return np.where(is_separator, self.separator, found)

    def document(self, positions: Integers) -> Integers:
        """The number of the document at some positions; its separator belongs to it."""
        return np.searchsorted(self.ends, positions, side="right")


def ends_path(path: Path) -> Path:
    """The file of the ends of documents, beside that of the tokens."""
    return path.with_suffix(".ends")


def sentences_path(path: Path) -> Path:
    """The file of the ends of sentences, beside that of the tokens."""
    return path.with_suffix(".sentences")
