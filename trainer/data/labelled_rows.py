"""Labelled texts as they are read: cleaned and counted, with the place of each row for messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import rows
from bellwether.trainer.data.corpus import clean, content_hash
from bellwether.trainer.data.formats import values
from bellwether.trainer.data.summary import SourceSummary
from bellwether.trainer.data.text_sources import TextSource

if TYPE_CHECKING:
    from bellwether.trainer.data.labelled_text import LabelledText


@dataclass
class LabelledRows:
    """The rows of a source.

    Attributes:
        texts: of each row, one or two.
        labels: as they were read; none where labels were not asked for.
        places: where each row is.
        named: the names that the source gives to the numbers in its label column, or None.
        summary: what was read.
    """

    texts: list[tuple[str, ...]] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    named: list[str] | None = None
    summary: SourceSummary = field(default_factory=SourceSummary)

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, chosen: Sequence[int] | npt.NDArray[Any]) -> LabelledRows:
        """Some of the rows, with the summary of all."""
        labels = [self.labels[i] for i in chosen] if self.labels else []
        return LabelledRows(
            [self.texts[i] for i in chosen], labels, [self.places[i] for i in chosen], self.named, self.summary
        )

    def hashes(self) -> npt.NDArray[np.uint64]:
        """A hash of each row's texts."""
        return np.array([content_hash("\t".join(texts)) for texts in self.texts], dtype=np.uint64)


def read(config: LabelledText, source: TextSource, labelled: bool = True) -> LabelledRows:
    """Reads all rows of a source.

    Raises:
        ConfigError: if it cannot be read, lacks a column, or has no rows.
    """
    columns = [*config.text_columns, *([config.label_column] if labelled else [])]
    found = LabelledRows(named=rows.class_names(source, config.label_column) if labelled else None)
    lengths: Counter[int] = Counter()
    for place, row in rows.read(config, source, columns, found.summary):
        texts = [_text(row.get(column), place, found.summary) for column in config.text_columns]
        if any(text is None for text in texts):
            continue
        found.summary.rows += 1
        found.summary.documents += 1
        found.texts.append(tuple(map(str, texts)))
        found.places.append(place)
        if labelled:
            found.labels.append(row.get(config.label_column))
        lengths[sum(map(len, found.texts[-1])).bit_length()] += 1
    if not found.texts:
        advice = found.summary.first_left_out("name other data")
        raise ConfigError(source.key, source.name, "has no rows with text", advice)
    each = [sum(map(len, texts)) for texts in found.texts]
    found.summary.longest, found.summary.shortest = max(each), min(each)
    found.summary.histogram_of = "texts by length in characters"
    found.summary.histogram = {f"below {2**n:,}": lengths[n] for n in range(min(lengths), max(lengths) + 1)}
    return found


def _text(value: Any, place: str, summary: SourceSummary) -> str | None:
    """The text of a value, cleaned; "" for an empty one, whose row keeps its label; None if it is no text, which is recorded."""
    texts = list(values.texts(value, place, summary))
    if not texts:
        return None
    if texts[0] is None or not texts[0].strip():
        summary.note("empty texts", "kept", place)
        return ""
    return clean(texts[0], place, summary) or ""
