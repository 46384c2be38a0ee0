"""Which tokens of a row are masked, and by what they are replaced (Devlin et al. 2018, section 3.1). In arrays, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bellwether.trainer.data.sampling import Bits, Integers, uniform

Flags = npt.NDArray[np.bool_]

FIXED = 0x6D61736B  # the seed of masks that are the same every time

_LAST = np.uint64(2**64 - 1)


def choose(
    order: Bits,
    count: int,
    excluded: Flags | None = None,
    continues: Flags | None = None,
    counts: Integers | None = None,
) -> Integers:
    """The positions to mask, ascending: [B, L] random numbers to [B, count].

    Args:
        order: the tokens with the lowest numbers are chosen.
        excluded: tokens that are not chosen while there are others, [B, L].
        continues: for whole-word masking, the tokens that continue the word before them, [B, L]. Words are chosen in the order of
            their first token's number as long as they fit into ``count``; only if none fits into the rest, one is masked in part.
        counts: of each row, at most ``count``, [B]: the other positions of a row are L - 1, at its end.
    """
    if excluded is not None:
        order = np.where(excluded, _LAST, order)
    if continues is not None:
        order = _by_words(order, count if counts is None else counts, continues, excluded)
    chosen = np.argsort(order, axis=1, kind="stable")[:, :count]
    if counts is not None:
        chosen = np.where(np.arange(count) < counts[:, None], chosen, order.shape[1] - 1)
    return np.sort(chosen, axis=1)


def _by_words(order: Bits, count: int | Integers, continues: Flags, excluded: Flags | None) -> Bits:
    """Numbers by which `choose` takes whole words: their rank in the order of words, those that do not fit after all others."""
    rows, length = order.shape
    starts = ~continues
    starts[:, 0] = True
    if excluded is not None:
        starts |= excluded  # a separator is no part of a word
        starts[:, 1:] |= excluded[:, :-1]
    word = np.cumsum(starts, axis=1) - 1
    sizes = np.zeros((rows, length), dtype=np.int64)
    np.add.at(sizes, (np.arange(rows)[:, None], word), 1)
    numbers = np.full((rows, length), _LAST)  # of each word: its first token's
    np.put_along_axis(numbers, np.where(starts, word, length - 1), np.where(starts, order, _LAST), axis=1)
    numbers[sizes == 0] = _LAST
    ranking = np.argsort(numbers, axis=1, kind="stable")
    rank = np.empty_like(ranking)
    np.put_along_axis(rank, ranking, np.broadcast_to(np.arange(length), (rows, length)), axis=1)
    left = np.full(rows, count)
    for place in range(length):
        chosen = ranking[:, place]
        size = sizes[np.arange(rows), chosen]
        is_word = (size > 0) & (numbers[np.arange(rows), chosen] != _LAST)
        fits = is_word & (size <= left)
        left -= np.where(fits, size, 0)
        rank[np.arange(rows), chosen] += np.where(fits, 0, np.where(is_word, length, 2 * length))
        if not left.any():
            rank[np.arange(rows)[:, None], ranking[:, place + 1 :]] += length
            break
    return np.take_along_axis(rank, word, axis=1).astype(np.uint64)


def random_tokens(bits: Bits, size: int, special: Sequence[int]) -> Integers:
    """A random token for each random number, of all but the ``special`` ones.

    Args:
        size: of the vocabulary.
        special: ascending.
    """
    drawn = (uniform(bits) * (size - len(special))).astype(np.int64)
    # The n-th special token is behind (token - n) ordinary ones.
    before = np.asarray(special, dtype=np.int64) - np.arange(len(special))
    return drawn + np.searchsorted(before, drawn, side="right")


def replace(labels: Integers, treatment: Bits, random: Integers, mask: int) -> Integers:
    """What stands in place of masked tokens: 80 % [MASK], 10 % a random token, 10 % the token itself."""
    fraction = uniform(treatment)
    return np.where(fraction < 0.8, mask, np.where(fraction < 0.9, random, labels))


def continuing_tokens(tokenizer: Any, size: int) -> Flags | None:
    """For each token of a vocabulary, whether it continues a word; None if the tokenizer does not mark this.

    WordPiece marks continuing tokens by ``##``. Byte-level BPE and SentencePiece mark tokens that begin a word, by the letter
    that stands for a space.
    """
    words = {number: token for token, number in tokenizer.get_vocab().items()}
    continuing = np.array([words.get(number, "").startswith("##") for number in range(size)])
    if continuing.any():
        return continuing
    begins = np.array([words.get(number, "").startswith(("\u0120", "\u2581")) for number in range(size)])
    return ~begins if begins.any() else None
