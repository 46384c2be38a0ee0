"""Predictions of token classifiers: a tag for each word of a sentence."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bellwether.trainer import scores
from bellwether.trainer.config import ConfigError
from bellwether.trainer.data import labelled_preparation, token_samples
from bellwether.trainer.data.labelled_tokens import LabelledTokens
from bellwether.trainer.data.labels import Classes, classes_of
from bellwether.trainer.data.token_samples import IGNORED, Sentences
from bellwether.trainer.inference.predictor import Predictor, Results, outputs
from bellwether.trainer.inference.texts import of_model
from bellwether.trainer.models.tasks import TokenClassification

log = logging.getLogger(__name__)

_SHARED = 4  # of a window, this part is shared with the next one


class _Tagging(TokenClassification):
    """Its predictions are [B, L, 2]: class numbers, and their probabilities."""

    def predicted(self, logits: Tensor) -> Tensor:
        probability, number = logits.softmax(dim=2).max(dim=2)
        return torch.stack([number.float(), probability], dim=2)


@dataclass
class WordTagger(Predictor):
    """A token classifier. See `Predictor`."""

    architecture: ClassVar[str] = "ForTokenClassification"
    data_config: ClassVar[type[LabelledTokens]] = LabelledTokens
    kept: ClassVar[tuple[str, ...]] = ("words_column", "label_column")

    names: list[str]

    @classmethod
    def keys(cls, options: Mapping[str, Any], of_run: Mapping[str, Any]) -> dict[str, Any]:
        named = dict(options)
        columns = named.pop("text_columns", None)
        if columns is not None and len(columns) != 1:
            raise ConfigError("--text-columns", ",".join(columns), "a token classifier reads one column", "name it")
        return {**of_run, **named, **({} if columns is None else {"words_column": columns[0]})}

    @classmethod
    def of(cls, config: Any, model: Any, words: Any) -> WordTagger:
        names = [model.config.id2label[i] for i in range(model.config.num_labels)]
        return cls(config, _Tagging(model, config.sequence_length), words, names)

    def results(self, batch: int, device: str) -> Results:
        """As `Predictor.results`; words beyond ``data.sequence_length`` do not count, as in training."""
        sentences = token_samples.read(self.config, self.source())
        labels = [label for labels in sentences.labels for label in labels]
        found = classes_of(labels, sentences.named, self.config, fewest=1)
        assert isinstance(found, Classes)
        with tempfile.TemporaryDirectory(prefix="bellwether-") as temporary:
            token_samples.write(
                self.config, self.words, sentences, of_model(found, self.names), Path(temporary), "rows"
            )
            self.check(sentences.summary)
            samples = token_samples.samples(self.config, self.words, Path(temporary), "rows")
            losses, predictions = outputs(self.task, samples, batch, device)
            numbers = predictions[:, :, 0].astype(np.int64)
            predicted, wanted = samples.of_words(numbers, np.arange(len(samples)))
        by_class = scores.by_class(self.names, np.concatenate(predicted), np.concatenate(wanted))
        of_all = scores.tokens(self.names, predicted, wanted)
        return Results({"loss": float(losses.mean()), **of_all, "examples": len(losses)}, by_class)

    def predictions(self, batch: int, device: str) -> Iterator[dict[str, Any]]:
        """Each row with the lists ``prediction`` and ``probability``, an element for each word.

        A long sentence is read in windows, of which neighbours share a fourth; a word's tag is from the window in which it is
        farthest from the ends. Both are None for a word of which the tokenizer makes nothing.
        """
        sentences = token_samples.read(self.config, self.source(), labelled=False)
        with tempfile.TemporaryDirectory(prefix="bellwether-") as temporary:
            places = self._write(sentences, Path(temporary))
            self.check(sentences.summary)
            samples = token_samples.samples(self.config, self.words, Path(temporary), "rows")
            _, found = outputs(self.task, samples, batch, device)
        for words, of_words in zip(sentences.words, places, strict=True):
            tags = [None if place is None else found[place] for place in of_words]
            yield {
                self.config.words_column: words,
                "prediction": [None if tag is None else self.names[int(tag[0])] for tag in tags],
                "probability": [None if tag is None else float(tag[1]) for tag in tags],
            }

    def _write(self, sentences: Sentences, folder: Path) -> list[list[tuple[int, int] | None]]:
        """Tokenizes sentences in windows. Returns the window and the token in it of each word's first piece."""
        length = self.config.sequence_length
        places: list[list[tuple[int, int] | None]] = [[None] * len(words) for words in sentences.words]
        margins = [[-1] * len(words) for words in sentences.words]
        window = tokens = 0
        with labelled_preparation.TokenWriter(folder, "rows", sentences.summary, self.words.unk_token_id) as writer:
            for first in range(0, len(places), token_samples.ROWS):
                encoded = self.words(
                    sentences.words[first : first + token_samples.ROWS], is_split_into_words=True, truncation=True,
                    max_length=length, stride=length // _SHARED, return_overflowing_tokens=True,
                )  # fmt: skip
                writer.write(encoded)
                for index, sentence in enumerate(encoded["overflow_to_sample_mapping"]):
                    row = first + sentence
                    for word, (token, margin) in _first_pieces(encoded.word_ids(index)).items():
                        if margin > margins[row][word]:
                            places[row][word], margins[row][word] = (window, token), margin
                    window += 1
                    tokens += len(encoded["input_ids"][index])
        np.save(folder / "rows-labels.npy", np.full(tokens, IGNORED, dtype=np.int64))
        for row, of_words in enumerate(places):
            if lost := of_words.count(None):
                what = "words of which the tokenizer makes nothing"
                sentences.summary.note(what, "without a prediction", sentences.places[row], lost)
        return places


def _first_pieces(words: Sequence[int | None]) -> dict[int, tuple[int, int]]:
    """Of each word that begins in a window: its first token, and the distance of that from the nearer end of the window.

    >>> _first_pieces([None, 0, 0, 1, None])
    {0: (1, 1), 1: (3, 1)}
    """
    found: dict[int, tuple[int, int]] = {}
    for token, word in enumerate(words):
        if word is not None and word not in found:
            found[word] = (token, min(token, len(words) - 1 - token))
    return found
