"""Pairs of segments for next-sentence prediction (Devlin et al. 2018, section 3.1), of rows of a token stream.

A row's content is cut in two. In half of the rows the second segment is replaced by as many tokens from another document. The cut is
between any two tokens of a document, and rows have no padding; `sentence_pairs` cuts between sentences, as BERT did.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bellwether.trainer.data.masking import Flags
from bellwether.trainer.data.packing import Stream
from bellwether.trainer.data.sampling import Integers, random_bits, uniform

_PAIRS = 0x70616972  # separates the random numbers of pairs from those of masks
_SHORTEST = 8  # a segment has at least one token in 8 of its row


class Segments(NamedTuple):
    """The pairs of B rows.

    Attributes:
        positions: in the stream, of the tokens of both segments, [B, content].
        first: the length of the first segment, [B].
        is_random: whether the second segment is from another document, [B].
    """

    positions: Integers
    first: Integers
    is_random: Flags


def draw(stream: Stream, positions: Integers, keys: npt.ArrayLike) -> Segments:
    """Pairs of rows of a stream of at least two documents.

    Args:
        positions: the rows' positions in the stream, [B, content].
        keys: B random numbers, of which the pairs are a function.
    """
    rows, content = positions.shape
    random = uniform(random_bits(np.asarray(keys, dtype=np.int64) ^ _PAIRS, 4))
    shortest = max(1, content // _SHORTEST)
    first = shortest + (random[:, 0] * (content - 2 * shortest + 1)).astype(np.int64)
    # Not between two documents, nor before a separator: the second segment is then no continuation.
    document, each = stream.document(positions), np.arange(rows)
    for _ in range(2):
        after = document[each, first]
        is_end = document[each, first - 1] != after
        if stream.separator is not None:
            is_end |= positions[each, first] == stream.ends[after] - 1
        first = np.where(is_end & (first > 1), first - 1, first)
    last = document[each, first - 1]

    is_random = random[:, 1] < 0.5
    ends = stream.ends
    other = (last + 1 + (random[:, 2] * (len(ends) - 1)).astype(np.int64)) % len(ends)
    begin = np.where(other > 0, ends[other - 1], 0)
    start = begin + (random[:, 3] * (ends[other] - begin)).astype(np.int64)
    places = np.arange(content) - first[:, None]
    elsewhere = (start[:, None] + places) % len(stream)
    return Segments(np.where(is_random[:, None] & (places >= 0), elsewhere, positions), first, is_random)


def joined(tokens: Integers, first: Integers, separator: int) -> Integers:
    """The tokens of both segments with the separator between them: [B, content] to [B, content + 1]."""
    places = np.arange(tokens.shape[1] + 1)
    source = np.where(places <= first[:, None], places, places - 1)
    found = np.take_along_axis(tokens, np.minimum(source, tokens.shape[1] - 1), axis=1)
    return np.where(places == first[:, None], separator, found)
