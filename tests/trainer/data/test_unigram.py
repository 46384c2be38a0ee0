"""The unigram loss: the held-out loss of token frequencies alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bellwether.trainer.data import load, unigram
from bellwether.trainer.data.text import TextData
from bellwether.trainer.data.token_stream import TokenStreamData
from bellwether.trainer.data.unigram import unigram_loss


@pytest.mark.parametrize("packing", ["stream", "separated"])
def test_unigram_loss_is_the_cross_entropy_of_token_frequencies(
    text_config: Callable[..., TextData], packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load(text_config(sequence_length=32, validation_share=0.5, packing=packing))
    train, held_out = (np.fromfile(part.path, dtype="uint16") for part in (data.train, data.validation))
    counts, size = Counter(train.tolist()), data.vocabulary_size or 0
    losses = [-math.log((counts[token] + 1) / (len(train) + size)) for token in held_out.tolist()]
    assert unigram_loss(data) == pytest.approx(np.mean(losses))
    assert 2 < np.mean(losses) < math.log(size)
    # Of long texts a part is counted, spread over all of it.
    monkeypatch.setattr(unigram, "_MOST", len(train) // 2)
    monkeypatch.setattr(unigram, "_BLOCKS", 4)
    assert unigram_loss(data) == pytest.approx(np.mean(losses), rel=0.15)


def test_unigram_loss_of_streams_is_that_of_their_tokens_and_ends(corpus: Path) -> None:
    data = load(
        TokenStreamData(
            kind="token-stream", source=str(corpus / "lines.txt"), cache=str(corpus / "cache"), length=5, validation_share=0.5,
            minimum_count=20, max_unknown=1.0,
        )
    )  # fmt: skip
    train, held_out = (part.stream.read(np.arange(len(part.stream))) for part in (data.train, data.validation))  # type: ignore[attr-defined]
    counts, size = Counter(train.tolist()), data.vocabulary_size or 0
    losses = [-math.log((counts[token] + 1) / (len(train) + size)) for token in held_out.tolist()]
    assert unigram_loss(data) == pytest.approx(np.mean(losses))
