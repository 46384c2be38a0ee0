"""Labelled texts, tokenized once: each split is one stream of tokens, with the end and the label of every text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bellwether.trainer import scores
from bellwether.trainer.data import Dataset, labelled_preparation, labelled_rows
from bellwether.trainer.data.labelled_preparation import Sources
from bellwether.trainer.data.labelled_rows import LabelledRows
from bellwether.trainer.data.labels import Classes, Numbers, classes_of
from bellwether.trainer.data.sources import split
from bellwether.trainer.data.summary import DataSummary

if TYPE_CHECKING:
    from bellwether.trainer.data import Scorer
    from bellwether.trainer.data.labelled_text import LabelledText

_REVISION = 3
_CLASSES = "classes.json"
_ROWS = 1000  # tokenized at a time
_MULTIPLE = 8  # of which a padded length is one, for tensor cores


@dataclass
class LabelledSamples:
    """Rows of variable length. See `bellwether.trainer.data.Samples`.

    A batch has ``input_ids``, ``attention_mask`` and, where the tokenizer makes them, ``token_type_ids``, int64 [B, L], padded to
    its longest text; ``labels`` int64 [B] for classes, float32 [B] for numbers.

    Attributes:
        folder: holds ``{part}-ids.bin``, ``{part}-types.bin``, ``{part}-ends.npy`` and ``{part}-labels.npy``.
        sequence_length: the longest text, in tokens.
        pad: the padding token.
    """

    folder: Path
    part: str
    sequence_length: int
    pad: int
    has_types: bool
    pads_left: bool = False
    _files: dict[str, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # each worker maps the files itself

    @property
    def labels(self) -> npt.NDArray[Any]:
        """The label of each row."""
        return self._array("labels")

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The number of tokens of each row. The loader puts rows of like length into one micro-batch."""
        if "lengths" not in self._files:
            self._files["lengths"] = np.diff(self._array("ends"), prepend=0)
        return self._files["lengths"]

    def batch(
        self, indices: Sequence[int] | npt.NDArray[np.int64], keys: Sequence[int] | npt.NDArray[np.int64]
    ) -> dict[str, Tensor]:
        rows = np.asarray(indices, dtype=np.int64)
        return {**self.inputs(*self.positions(rows)), "labels": torch.from_numpy(self.labels[rows])}

    def positions(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Where the tokens of padded rows lie in the stream, [B, L], and which of them are not padding, [B, L]."""
        ends, lengths = self._array("ends")[rows], self.lengths[rows]
        length = min(self.sequence_length, -(-int(lengths.max(initial=1)) // _MULTIPLE) * _MULTIPLE)
        positions = np.arange(length) - (length - lengths[:, None] if self.pads_left else 0)
        real = (positions >= 0) & (positions < lengths[:, None])
        return np.where(real, (ends - lengths)[:, None] + positions, 0), real

    def inputs(self, where: npt.NDArray[np.int64], real: npt.NDArray[np.bool_]) -> dict[str, Tensor]:
        """What a model takes, from `positions`."""
        batch = {
            "input_ids": np.where(real, self._stream("ids", np.uint32)[where], self.pad).astype(np.int64),
            "attention_mask": real.astype(np.int64),
        }
        if self.has_types:
            batch["token_type_ids"] = np.where(real, self._stream("types", np.uint8)[where], 0).astype(np.int64)
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def _array(self, name: str) -> npt.NDArray[Any]:
        if name not in self._files:
            self._files[name] = np.load(self.folder / f"{self.part}-{name}.npy")
        return self._files[name]

    def _stream(self, name: str, dtype: Any) -> npt.NDArray[Any]:
        if name not in self._files:
            self._files[name] = np.memmap(self.folder / f"{self.part}-{name}.bin", dtype=dtype, mode="r")
        return self._files[name]


def prepare(config: LabelledText) -> dict[str, Any]:
    """Prepares labelled text. See `bellwether.trainer.data.labelled_preparation.prepare`."""
    key = {"revision": _REVISION, "columns": [*config.text_columns, config.label_column], "task": config.task}
    return labelled_preparation.prepare(config, "labelled", key, lambda *given: _prepare(config, *given))


def open_prepared(config: LabelledText, facts: dict[str, Any]) -> Dataset:
    """The labelled text that `prepare` has prepared."""
    entry, words, summary = labelled_preparation.opened(facts)
    names = json.loads((entry / _CLASSES).read_text(encoding="utf-8"))

    def scorer(part: LabelledSamples) -> Scorer:
        return lambda predictions, rows: scores.score(names, predictions, part.labels[rows])

    parts = labelled_preparation.held_out_parts(config)
    return labelled_preparation.dataset(
        config, samples(config, words, entry, "train"), {name: samples(config, words, entry, part) for name, part in parts.items()},
        scorer, vocabulary_size=len(words), classes=None if names is None else len(names), labels=names,
        tokenizer=words, fingerprint=entry.name, summary=summary,
    )  # fmt: skip


def samples(config: LabelledText, words: Any, folder: Path, part: str) -> LabelledSamples:
    """The rows that `write` has written."""
    has_types = (folder / f"{part}-types.bin").exists()
    return LabelledSamples(
        folder, part, config.sequence_length, words.pad_token_id or 0, has_types, words.padding_side == "left"
    )


def _prepare(config: LabelledText, words: Any, sources: Sources, folder: Path) -> None:
    train = labelled_rows.read(config, sources["data.source"])
    labels = classes_of(train.labels, train.named, config)
    summary = DataSummary("labelled-text", config.source, train.summary)
    held_out = {name: labelled_rows.read(config, sources[key]) for name, key, _ in config.held_out_keys()}
    summary.held_out = {name: rows.summary for name, rows in held_out.items()}
    if not held_out:
        of_train, of_held_out = split(len(train), config)
        train, held_out = train.select(of_train), {"validation": train.select(of_held_out)}
    trained = write(config, words, train, labels, folder, "train")
    for name, part in labelled_preparation.held_out_parts(config).items():
        write(config, words, held_out[name], labels, folder, part)
    summary.source.find_empty_classes(trained)
    summary.source.find_alike_classes()
    summary.count_rows(train.hashes(), {name: rows.hashes() for name, rows in held_out.items()})
    summary.write(folder)
    (folder / _CLASSES).write_text(json.dumps(labels.names), encoding="utf-8")


def write(
    config: LabelledText, words: Any, rows: LabelledRows, labels: Classes | Numbers | None, folder: Path, part: str
) -> dict[str, int]:
    """Tokenize rows into files of a folder. Adds tokens, cut texts and classes to the summary of the rows.

    Args:
        labels: converts labels to numbers; None: the rows have none.

    Returns:
        the number of rows of each class; empty where there are no classes.

    Raises:
        ConfigError: if a label is missing, or is no class of `labels`.
    """
    numbers = np.zeros(len(rows), np.int64) if labels is None else labels.numbers(rows.labels, rows.places)
    summary = rows.summary
    with labelled_preparation.TokenWriter(folder, part, summary, words.unk_token_id) as writer:
        for first in range(0, len(rows), _ROWS):
            texts = [list(column) for column in zip(*rows.texts[first : first + _ROWS], strict=True)]
            encoded = words(*texts, truncation="longest_first", max_length=config.sequence_length)
            writer.write(encoded)
            if cut := sum(bool(encoding.overflowing) for encoding in encoded.encodings):
                summary.note(
                    "texts longer than data.sequence_length", f"cut to {config.sequence_length} tokens", count=cut
                )
    np.save(folder / f"{part}-labels.npy", numbers)
    if labels is None or labels.names is None:
        return {}
    return summary.count_classes(labels.names, numbers)
