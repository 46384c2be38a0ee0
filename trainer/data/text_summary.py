"""The summary of text: what was read, its tokens, and the rows that training and held-out data share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bellwether.trainer.data import tokens
from bellwether.trainer.data.cache import prepared
from bellwether.trainer.data.corpus import Corpus
from bellwether.trainer.data.summary import DataSummary, SourceSummary

if TYPE_CHECKING:
    from bellwether.trainer.data.plain_text import PlainText


def load(
    config: PlainText,
    corpus: Corpus,
    held_out: Mapping[str, Corpus],
    mask: npt.NDArray[np.bool_] | None,
    entry: Path,
    entries: Mapping[str, Path],
) -> DataSummary:
    """The summary, without what the listings of files say.

    Args:
        corpus: the texts of ``data.source``; ``entry``: its tokens.
        held_out: the texts of each set of held-out data, and ``entries``: its tokens.
        mask: the texts of `corpus` that are held out; None if there are such sets.
    """
    key = {"revision": 1, "train": entry.name, "held_out": {name: each.name for name, each in entries.items()}}

    def build(folder: Path) -> None:
        found = DataSummary("text", config.source)
        hashes = corpus.hashes()
        sets = {name: each.hashes() for name, each in held_out.items()}
        if mask is not None:
            sets = {"validation": hashes[mask]}
        found.count_rows(hashes if mask is None else hashes[~mask], sets)
        found.source = _with_tokens(corpus.summary, entry)
        found.held_out = {name: _with_tokens(each.summary, entries[name]) for name, each in held_out.items()}
        found.write(folder)

    summary = DataSummary.read(prepared(config.cache, "summary", key, build))
    summary.kind, summary.name = config.kind, config.source
    return summary


def _with_tokens(summary: SourceSummary, entry: Path) -> SourceSummary:
    facts = tokens.facts(entry)
    summary.tokens, summary.unknown_tokens = facts["tokens"], facts["unknown"]
    return summary
