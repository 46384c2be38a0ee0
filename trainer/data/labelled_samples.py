"""Labelled texts, tokenized once: each split is one stream of tokens, with the end and the label of every text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bellwether.trainer import scores
from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import Dataset, tokenizer
from bellwether.trainer.data.cache import digest, prepared
from bellwether.trainer.data.labels import Classes, Numbers, classes_of
from bellwether.trainer.data.sources import locate, split
from bellwether.trainer.data.summary import DataSummary, SourceSummary
from bellwether.trainer.data.text_facts import TextFacts

if TYPE_CHECKING:
    from bellwether.trainer.data.labelled_text import LabelledText

_REVISION = 1
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
        ends, lengths = self._array("ends")[rows], self.lengths[rows]
        length = min(self.sequence_length, -(-int(lengths.max(initial=1)) // _MULTIPLE) * _MULTIPLE)
        positions = np.arange(length) - (length - lengths[:, None] if self.pads_left else 0)
        real = (positions >= 0) & (positions < lengths[:, None])
        where = np.where(real, (ends - lengths)[:, None] + positions, 0)
        batch = {
            "input_ids": np.where(real, self._stream("ids", np.uint32)[where], self.pad).astype(np.int64),
            "attention_mask": real.astype(np.int64),
        }
        if self.has_types:
            batch["token_type_ids"] = np.where(real, self._stream("types", np.uint8)[where], 0).astype(np.int64)
        return {name: torch.from_numpy(values) for name, values in {**batch, "labels": self.labels[rows]}.items()}

    def _array(self, name: str) -> npt.NDArray[Any]:
        if name not in self._files:
            self._files[name] = np.load(self.folder / f"{self.part}-{name}.npy")
        return self._files[name]

    def _stream(self, name: str, dtype: Any) -> npt.NDArray[Any]:
        if name not in self._files:
            self._files[name] = np.memmap(self.folder / f"{self.part}-{name}.bin", dtype=dtype, mode="r")
        return self._files[name]


def load(config: LabelledText) -> Dataset:
    """Prepares labelled text. See `bellwether.trainer.data.load`."""
    words = tokenizer.given(config)
    sources = {"data.source": locate(config)}
    if config.validation is not None:
        sources["data.validation"] = locate(config, "data.validation")

    def build(folder: Path) -> None:
        rows = {key: checked(source.open(), config, key) for key, source in sources.items()}
        labels = classes_of(rows["data.source"], config)
        train, held_out, key = rows["data.source"], rows.get("data.validation"), "data.validation"
        if held_out is None:
            of_train, of_held_out = split(len(train), config)
            train, held_out, key = train.select(of_train), train.select(of_held_out), "data.source"
        parts = (
            write(config, words, train, labels, folder, "train", "data.source"),
            write(config, words, held_out, labels, folder, "validation", key),
        )
        _summary(config, *parts).write(folder)
        (folder / "classes.json").write_text(json.dumps(labels.names), encoding="utf-8")

    key = {
        "revision": _REVISION, "sources": {key: source.fingerprint for key, source in sources.items()},
        "columns": [*config.text_columns, config.label_column], "task": config.task, "length": config.sequence_length,
        "share": None if config.validation is not None else config.validation_share,
        "tokenizer": digest(words.backend_tokenizer.to_str()),
    }  # fmt: skip
    entry = prepared(config.cache, "labelled", key, build)
    names = json.loads((entry / "classes.json").read_text(encoding="utf-8"))
    summary = DataSummary.read(entry)
    summary.source.add(sources["data.source"].listing)
    if "data.validation" in sources:
        summary.held_out["validation"].add(sources["data.validation"].listing)
    train, held_out = (samples(config, words, entry, part) for part in ("train", "validation"))
    return Dataset(
        train, held_out, vocabulary_size=len(words), classes=None if names is None else len(names), labels=names,
        tokenizer=words, fingerprint=entry.name, summary=summary,
        score=lambda predictions, rows: scores.score(names, predictions, held_out.labels[rows]),
    )  # fmt: skip


def samples(config: LabelledText, words: Any, folder: Path, part: str) -> LabelledSamples:
    """The rows that `write` has written."""
    has_types = (folder / f"{part}-types.bin").exists()
    return LabelledSamples(
        folder, part, config.sequence_length, words.pad_token_id or 0, has_types, words.padding_side == "left"
    )


def checked(rows: Any, config: LabelledText, key: str, labelled: bool = True) -> Any:
    """The rows with the columns that the config names, and no others.

    Raises:
        ConfigError: if there are no rows, or a column is missing or holds no text.
    """
    for option, column in _columns(config, labelled):
        if column not in rows.column_names:
            have = ", ".join(rows.column_names)
            raise ConfigError(f"data.{option}", column, f"no such column in {key}", f"it has: {have}")
        dtype = getattr(rows.features[column], "dtype", rows.features[column])
        if option == "text_columns" and dtype not in ("string", "large_string", "null"):
            raise ConfigError("data.text_columns", column, f"holds {dtype} in {key}, not text", "name another column")
    if not len(rows):
        value = config.source if key == "data.source" else config.validation
        raise ConfigError(key, value, "has no rows", "name other data")
    return rows.select_columns([column for _, column in _columns(config, labelled)])


def _columns(config: LabelledText, labelled: bool) -> Iterator[tuple[str, str]]:
    yield from (("text_columns", column) for column in config.text_columns)
    if labelled:
        yield "label_column", config.label_column


def _summary(config: LabelledText, train: Written, held_out: Written) -> DataSummary:
    summary = DataSummary("labelled-text", config.source, train.summary())
    if config.validation is not None:
        summary.held_out["validation"] = held_out.summary()
    else:
        summary.source.add(held_out.summary())
    summary.rows_train, summary.rows_held_out = train.texts.rows, {"validation": held_out.texts.rows}
    summary.duplicates_train = train.texts.duplicates()
    summary.overlap = {"validation": held_out.texts.also_in(train.texts)}
    return summary


@dataclass
class Written:
    """What `write` has read: counts of the texts, of those that were cut, and of the labels by class."""

    texts: TextFacts
    cut: int
    length: int
    classes: dict[str, int]

    def summary(self) -> SourceSummary:
        summary = self.texts.summary()
        summary.classes = self.classes
        for found in summary.findings:  # an empty text keeps its label
            found.done = "kept" if found.what == "empty rows" else found.done
        if self.cut:
            summary.note("texts longer than data.sequence_length", f"cut to {self.length} tokens", count=self.cut)
        for name in (name for name, count in self.classes.items() if not count):
            summary.note("classes without rows", "kept", name)
        return summary


def write(
    config: LabelledText, words: Any, rows: Any, labels: Classes | Numbers | None, folder: Path, part: str, key: str
) -> Written:
    """Tokenize rows into files of a folder.

    Args:
        labels: converts labels to numbers; None: the rows have none.
        key: where the rows come from, for messages.

    Raises:
        ConfigError: if a label is missing, or is no class of `labels`.
    """
    ends: list[npt.NDArray[np.int64]] = []
    values: list[npt.NDArray[Any]] = []
    facts, total, cut, first = TextFacts(words.unk_token_id), 0, 0, 0
    with (folder / f"{part}-ids.bin").open("wb") as ids, (folder / f"{part}-types.bin").open("wb") as types:
        for batch in rows.iter(batch_size=_ROWS):
            texts = [[text or "" for text in batch[column]] for column in config.text_columns]
            for _ in facts.reading("\t".join(pair) for pair in zip(*texts, strict=True)):
                pass
            encoded = words(*texts, truncation="longest_first", max_length=config.sequence_length)
            cut += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
            tokens = [np.array(row, dtype=np.uint32) for row in encoded["input_ids"]]
            ids.write(np.concatenate(tokens).tobytes())
            types.writelines(bytes(row) for row in encoded.get("token_type_ids", ()))
            ends.append(total + np.cumsum([len(row) for row in tokens]))
            facts.count(np.concatenate(tokens))
            total = int(ends[-1][-1])
            column = batch[config.label_column] if labels is not None else [0] * len(tokens)
            values.append(np.array(column) if labels is None else labels.numbers(column, key, first))
            first += len(tokens)
        has_types = types.tell() > 0
    if not has_types:
        (folder / f"{part}-types.bin").unlink()
    np.save(folder / f"{part}-ends.npy", np.concatenate(ends))
    np.save(folder / f"{part}-labels.npy", np.concatenate(values))
    names = labels.names if labels is not None else None
    counts = (
        {}
        if names is None
        else dict(zip(names, np.bincount(np.concatenate(values), minlength=len(names)).tolist(), strict=True))
    )
    return Written(facts, cut, config.sequence_length, counts)
