"""Pairs of segments of whole sentences for next-sentence prediction, as BERT's `create_pretraining_data.py` makes them.

A document is cut into chunks of whole sentences, each as long as the target or longer: the length of a row, and in one of ten chunks
a random shorter one. A chunk is cut in two at a random sentence. In half of the pairs, and where the chunk is one sentence, the second
segment is replaced by sentences of another document until the target is reached, and the chunk's own second part begins the next chunk.
A pair that is too long is truncated: token by token from the longer segment, at the front or the back.

Chunks follow from one another, so they are computed when data is prepared, `VARIANTS` times with other random numbers as BERT's
`dupe_factor` does, and a sample is a pair of one of them, at its place in the corpus. The other document, the truncation and the masks are
drawn for each sample.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data.cache import prepared
from bellwether.trainer.data.packing import ends_path, sentences_path
from bellwether.trainer.data.sampling import Integers, fold_in, random_bits, sample_keys, uniform
from bellwether.trainer.data.summary import SourceSummary

REVISION = 1
VARIANTS = 10
_BY = {"lines": "lines", "punctuation": "punctuation and blank lines"}
_SHORT = 0.1  # share of the chunks whose target is shorter than a row
_PLAN, _DRAW = 0x73656E74, 0x64726177  # separate the random numbers of chunks and of samples from those of masks


class Pairs(NamedTuple):
    """B pairs of segments, by the position of their first token in the stream and their number of tokens, int64 [B] each.

    Attributes:
        is_random: whether the second segment is of another document, [B].
    """

    first: Integers
    first_length: Integers
    second: Integers
    second_length: Integers
    is_random: npt.NDArray[np.bool_]


def plan(sentences: Integers, documents: Integers, content: int, seed: int) -> Integers:
    """The chunks of a corpus, [chunks, 4]: their first token, the token at which they are cut, their end, and their target.

    Of a chunk whose second segment is of another document, the end is the cut.

    Args:
        sentences: the number of tokens before the end of each sentence, ascending, and ``documents``: of each document.
        content: tokens of a row without [CLS] and [SEP].
    """
    last = np.searchsorted(sentences, documents, side="right")  # the number of the sentence behind each document
    begin = np.concatenate([[0], sentences])  # the first token of each sentence
    at = np.concatenate([[0], last[:-1]]).astype(np.int64)  # the next sentence of each document
    active, found, count = np.arange(len(documents)), [], 0
    while len(active := active[at[active] < last[active]]):
        random = uniform(random_bits(sample_keys(fold_in(seed ^ _PLAN, count), active), 4))
        shorter = 2 + (random[:, 1] * (content - 1)).astype(np.int64)
        target = np.where(random[:, 0] < _SHORT, shorter, content)
        start = at[active]
        # As many sentences as reach the target.
        end = np.searchsorted(sentences, begin[start] + target, side="left") + 1
        end = np.minimum(end, last[active])
        cut = start + 1 + (random[:, 2] * (end - start - 1)).astype(np.int64)
        is_random = (end - start == 1) | (random[:, 3] < 0.5)
        end = np.where(is_random, cut, end)
        found.append(np.stack([begin[start], begin[cut], begin[end], target], axis=1))
        at[active] = end
        count += 1
    chunks = np.concatenate([np.empty((0, 4), np.int64), *found])
    return chunks[np.argsort(chunks[:, 0], kind="stable")]


def prepare(config: Any, tokens: Path, summary: SourceSummary | None) -> Path:
    """The plans of a file of tokens, computed or found.

    Args:
        summary: to which its counts are added.

    Raises:
        ConfigError: if no document has two sentences.
    """
    content = config.sequence_length - 3
    key = {"revision": REVISION, "tokens": tokens.parent.name, "file": tokens.name, "content": content}

    def build(folder: Path) -> None:
        sentences, documents = (np.fromfile(path(tokens), dtype=np.int64) for path in (sentences_path, ends_path))
        for variant in range(VARIANTS):
            np.save(folder / f"{variant}.npy", plan(sentences, documents, content, variant))

    folder = prepared(config.cache, "pairs", key, build)
    sentences, documents = (path(tokens).stat().st_size // 8 for path in (sentences_path, ends_path))
    if documents and sentences <= documents:
        problem = f"none of {documents:,} documents has two sentences, so no segment continues another"
        raise ConfigError(
            "data.sentences", config.sentences, problem, "see data.documents, or write another rule or null"
        )
    if summary is not None:
        summary.note("sentences", f"by {_BY[config.sentences]}, make segments", count=sentences)
        chunks = np.load(folder / "0.npy", mmap_mode="r")
        summary.note("pairs of segments", "in a pass through the text", count=len(chunks))
    return folder


@dataclass
class SentencePairs:
    """The pairs of a file of tokens.

    Attributes:
        tokens: the file, with the ends of documents and of sentences beside it.
        folder: of the plans that `prepare` returned.
        content: the most tokens of a pair.
    """

    tokens: Path
    folder: Path
    content: int
    _loaded: Any = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}  # each worker maps the files itself

    def __len__(self) -> int:
        return len(np.load(self.folder / "0.npy", mmap_mode="r"))

    def _files(self) -> tuple[Integers, Integers, list[Integers]]:
        if self._loaded is None:
            sentences, documents = (np.memmap(path(self.tokens), np.int64, "r") for path in (sentences_path, ends_path))
            plans = [np.load(self.folder / f"{variant}.npy", mmap_mode="r") for variant in range(VARIANTS)]
            self._loaded = sentences, documents, plans
        found: tuple[Integers, Integers, list[Integers]] = self._loaded
        return found

    def draw(self, rows: Integers, keys: npt.ArrayLike) -> Pairs:
        """The pairs of some rows.

        Args:
            keys: B random numbers, of which the pairs are a function.
        """
        sentences, documents, plans = self._files()
        keys = np.asarray(keys, dtype=np.int64) ^ _DRAW
        bits = random_bits(keys, 3)
        variant = (bits[:, 0] % np.uint64(VARIANTS)).astype(np.int64)
        sizes = np.array([len(chunks) for chunks in plans])
        place = rows * sizes[variant] // sizes[0]
        first, cut, end, target = np.stack([plans[v][p] for v, p in zip(variant, place, strict=True)]).T
        is_random = end == cut

        random = uniform(bits[:, 1:])
        document = np.searchsorted(documents, first, side="right")
        other = (document + 1 + (random[:, 0] * (len(documents) - 1)).astype(np.int64)) % len(documents)
        begin = np.where(other > 0, documents[other - 1], 0)
        low, high = (np.searchsorted(sentences, x, side="right") for x in (begin, documents[other]))
        chosen = low + (random[:, 1] * (high - low)).astype(np.int64)
        start = np.where(chosen > 0, sentences[chosen - 1], 0)
        # As many sentences as reach the target, at least one.
        wanted = np.maximum(target - (cut - first), 1)
        stop = sentences[np.minimum(np.searchsorted(sentences, start + wanted, side="left"), high - 1)]

        second, lengths = np.where(is_random, start, cut), np.where(is_random, stop - start, end - cut)
        return _truncated(Pairs(first, cut - first, second, lengths, is_random), self.content, keys)


def _truncated(pairs: Pairs, most: int, keys: Integers) -> Pairs:
    """Removes tokens from the longer segment, from the second of two equal ones, until both have ``most``: each at front or back."""
    first = np.minimum(pairs.first_length, np.maximum(most - pairs.second_length, (most + 1) // 2))
    second = np.minimum(pairs.second_length, most - first)
    removed = np.stack([pairs.first_length - first, pairs.second_length - second], axis=1)
    front = _heads(removed, keys)
    return Pairs(pairs.first + front[:, 0], first, pairs.second + front[:, 1], second, pairs.is_random)


def _heads(flips: Integers, keys: Integers) -> Integers:
    """How many of some flips of a coin are heads, exactly, [B, n] to [B, n]."""
    words = int(flips.max(initial=0)) // 64 + 1
    bits = random_bits(keys, 3 + words * flips.shape[1])[:, 3:].reshape(len(flips), flips.shape[1], words)
    places = np.unpackbits(bits.view(np.uint8), axis=2)
    counts: Integers = (places * (np.arange(places.shape[2]) < flips[:, :, None])).sum(2, dtype=np.int64)
    return counts
