"""Labelled words, tokenized once. The first piece of each word has its label, the others none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bellwether.trainer import scores
from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import Dataset, labelled_preparation, rows
from bellwether.trainer.data.corpus import content_hash
from bellwether.trainer.data.labelled_preparation import Sources
from bellwether.trainer.data.labelled_samples import LabelledSamples
from bellwether.trainer.data.labels import Classes, classes_of
from bellwether.trainer.data.sources import split
from bellwether.trainer.data.summary import DataSummary, SourceSummary
from bellwether.trainer.data.text_sources import TextSource

if TYPE_CHECKING:
    from bellwether.trainer.data import Scorer
    from bellwether.trainer.data.labelled_tokens import LabelledTokens

_REVISION = 2
_CLASSES = "classes.json"
ROWS = 1000  # tokenized at a time
IGNORED = -100  # label of what is not to be predicted


@dataclass
class TokenSamples(LabelledSamples):
    """As `LabelledSamples`, with a label for each token: ``labels`` int64 [B, L], `IGNORED` where there is none."""

    def __len__(self) -> int:
        return len(self._array("ends"))

    def batch(
        self, indices: Sequence[int] | npt.NDArray[np.int64], keys: Sequence[int] | npt.NDArray[np.int64]
    ) -> dict[str, Tensor]:
        where, real = self.positions(np.asarray(indices, dtype=np.int64))
        return {**self.inputs(where, real), "labels": torch.from_numpy(np.where(real, self.labels[where], IGNORED))}

    def of_words(
        self, predictions: npt.NDArray[Any], chosen: npt.NDArray[np.int64]
    ) -> tuple[list[npt.NDArray[Any]], list[npt.NDArray[np.int64]]]:
        """Predictions [N, ...] and labels of the words of some rows, without those of other tokens."""
        ends = self._array("ends")
        labels = [
            self.labels[end - length : end] for end, length in zip(ends[chosen], self.lengths[chosen], strict=True)
        ]
        predicted = [row[: len(each)][each != IGNORED] for row, each in zip(predictions, labels, strict=True)]
        return predicted, [each[each != IGNORED] for each in labels]


@dataclass
class Sentences:
    """Sentences as they are read: words, labels as they were read (none where they were not asked for), and places for messages."""

    words: list[list[str]]
    labels: list[list[Any]]
    places: list[str]
    named: list[str] | None
    summary: SourceSummary

    def select(self, chosen: npt.NDArray[Any]) -> Sentences:
        parts = [[part[i] for i in chosen] for part in (self.words, self.labels, self.places)]
        return Sentences(parts[0], parts[1], parts[2], self.named, self.summary)  # type: ignore[arg-type]

    def hashes(self) -> npt.NDArray[np.uint64]:
        return np.array([content_hash(" ".join(words)) for words in self.words], dtype=np.uint64)


def prepare(config: LabelledTokens) -> dict[str, Any]:
    """Prepares labelled words. See `bellwether.trainer.data.labelled_preparation.prepare`."""
    key = {"revision": _REVISION, "columns": [config.words_column, config.label_column]}
    return labelled_preparation.prepare(config, "tokens-labelled", key, lambda *given: _prepare(config, *given))


def open_prepared(config: LabelledTokens, facts: dict[str, Any]) -> Dataset:
    """What `prepare` has prepared."""
    entry, words, summary = labelled_preparation.opened(facts)
    names = json.loads((entry / _CLASSES).read_text(encoding="utf-8"))

    def scorer(part: TokenSamples) -> Scorer:
        return lambda predictions, chosen: scores.tokens(names, *part.of_words(predictions, chosen))

    parts = labelled_preparation.held_out_parts(config)
    return labelled_preparation.dataset(
        config, samples(config, words, entry, "train"), {name: samples(config, words, entry, part) for name, part in parts.items()},
        scorer, vocabulary_size=len(words), classes=len(names), labels=names, tokenizer=words, fingerprint=entry.name, summary=summary,
    )  # fmt: skip


def samples(config: LabelledTokens, words: Any, folder: Path, part: str) -> TokenSamples:
    """The rows that `write` has written."""
    has_types = (folder / f"{part}-types.bin").exists()
    return TokenSamples(folder, part, config.sequence_length, words.pad_token_id or 0, has_types)


def _prepare(config: LabelledTokens, words: Any, sources: Sources, folder: Path) -> None:
    train = read(config, sources["data.source"])
    classes = classes_of([label for labels in train.labels for label in labels], train.named, config)
    assert isinstance(classes, Classes)
    summary = DataSummary("labelled-tokens", config.source, train.summary)
    held_out = {name: read(config, sources[key]) for name, key, _ in config.held_out_keys()}
    summary.held_out = {name: sentences.summary for name, sentences in held_out.items()}
    if not held_out:
        of_train, of_held_out = split(len(train.words), config)
        train, held_out = train.select(of_train), {"validation": train.select(of_held_out)}
    trained = write(config, words, train, classes, folder, "train")
    for name, part in labelled_preparation.held_out_parts(config).items():
        write(config, words, held_out[name], classes, folder, part)
    summary.source.find_empty_classes(trained)
    summary.source.find_alike_classes()
    summary.count_rows(train.hashes(), {name: sentences.hashes() for name, sentences in held_out.items()})
    summary.write(folder)
    (folder / _CLASSES).write_text(json.dumps(classes.names), encoding="utf-8")


def read(config: LabelledTokens, source: TextSource, labelled: bool = True) -> Sentences:
    """Reads all sentences of a source.

    Args:
        labelled: whether words have labels; if not, labels are not read, and empty sentences are kept.

    Raises:
        ConfigError: if it cannot be read, lacks a column, or has no sentences.
    """
    columns = [config.words_column, *([config.label_column] if labelled else [])]
    names = rows.class_names(source, config.label_column) if labelled else None
    found = Sentences([], [], [], names, SourceSummary())
    for place, row in rows.read(config, source, columns, found.summary):
        words, labels = row.get(config.words_column), row.get(config.label_column)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            found.summary.unreadable(f"{place}: {config.words_column} holds no list of words")
            continue
        if labelled and (not isinstance(labels, list) or len(labels) != len(words)):
            count = len(labels) if isinstance(labels, list) else 0
            found.summary.unreadable(f"{place}: {len(words)} words have {count} labels")
            continue
        if not words:
            found.summary.note("empty sentences", "left out" if labelled else "kept", place)
            if labelled:
                continue
        found.summary.rows += 1
        found.summary.documents += 1
        found.words.append(words)
        found.places.append(place)
        if labelled:
            assert isinstance(labels, list)
            found.labels.append(labels)
    if not found.words:
        advice = found.summary.first_left_out("name other data")
        raise ConfigError(source.key, source.name, "has no sentences", advice)
    lengths = [sum(map(len, words)) + len(words) - 1 for words in found.words]
    found.summary.longest, found.summary.shortest = max(lengths), min(lengths)
    return found


def write(
    config: LabelledTokens, tokenizer: Any, sentences: Sentences, classes: Classes, folder: Path, part: str
) -> dict[str, int]:
    """Tokenize sentences into files of a folder. Adds tokens, lost words and classes to the summary of the sentences.

    Returns:
        the number of words of each class.

    Raises:
        ConfigError: if a label is missing, or is no class of `classes`.
    """
    summary = sentences.summary
    labels: list[npt.NDArray[np.int64]] = []
    with labelled_preparation.TokenWriter(folder, part, summary, tokenizer.unk_token_id) as writer:
        for first in range(0, len(sentences.words), ROWS):
            chosen = sentences.words[first : first + ROWS]
            encoded = tokenizer(chosen, is_split_into_words=True, truncation=True, max_length=config.sequence_length)
            writer.write(encoded)
            for index in range(len(chosen)):
                place = sentences.places[first + index]
                numbers = classes.numbers(sentences.labels[first + index], [place] * len(chosen[index]))
                of_tokens = _of_first_pieces(encoded.word_ids(index), numbers)
                if lost := len(numbers) - int((of_tokens != IGNORED).sum()):
                    what = "words beyond data.sequence_length, or of which the tokenizer makes nothing"
                    summary.note(what, "neither trained on nor scored", place, lost)
                labels.append(of_tokens)
    every = np.concatenate(labels)
    np.save(folder / f"{part}-labels.npy", every)
    return summary.count_classes(classes.names, every[every != IGNORED])


def _of_first_pieces(words: Sequence[int | None], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The label of each token: that of its word for the first piece, `IGNORED` for others and for special tokens."""
    is_first = [word is not None and word != before for before, word in zip([None, *words], words, strict=False)]
    return np.array([labels[word] if first else IGNORED for word, first in zip(words, is_first, strict=True)], np.int64)
