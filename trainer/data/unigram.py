"""The loss of a model that knows nothing but how often each token occurs: what language modelling has to be held against.

A held-out loss above it means that only the output bias was learnt.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bellwether.trainer.data import Dataset
from bellwether.trainer.data.packing import Stream
from bellwether.trainer.data.sentence_samples import SentenceSamples
from bellwether.trainer.data.stream_samples import StreamSamples
from bellwether.trainer.data.text_samples import TextSamples

_MOST = 2**24  # tokens that are counted
_BLOCKS = 256  # they are read in, spread evenly over the text


def unigram_loss(dataset: Dataset) -> float | None:
    """Held-out cross-entropy of predicting each token by its frequency in the training text, in nats; None for other data.

    Counts are of tokens, each plus one; without separators where these are not predicted, as in masked language modelling. Of long
    texts a part is counted.
    """
    train, held_out, size = dataset.train, dataset.validation, dataset.vocabulary_size
    kinds = (TextSamples, SentenceSamples, StreamSamples)
    if not isinstance(train, kinds) or not isinstance(held_out, kinds) or size is None:
        return None
    counts, weight = (_counts(part, size) for part in (train, held_out))
    counts += 1.0
    return float(-(weight * np.log(counts / counts.sum())).sum() / weight.sum())


def _counts(samples: TextSamples | SentenceSamples | StreamSamples, size: int) -> npt.NDArray[np.float64]:
    stream = samples.stream
    counts = _of_tokens(stream, size)
    if isinstance(samples, StreamSamples) and stream.separator is not None:
        tokens = len(stream) - stream.documents
        counts[stream.separator] += stream.documents * min(1.0, _MOST / tokens)
    return counts


def _of_tokens(stream: Stream, size: int) -> npt.NDArray[np.float64]:
    tokens = np.memmap(stream.path, dtype=stream.dtype, mode="r")
    if len(tokens) <= _MOST:
        return np.bincount(tokens, minlength=size).astype(np.float64)
    length = _MOST // _BLOCKS
    starts = np.linspace(0, len(tokens) - length, _BLOCKS).astype(np.int64)
    return np.sum(
        [np.bincount(tokens[start : start + length], minlength=size) for start in starts], axis=0, dtype=np.float64
    )
