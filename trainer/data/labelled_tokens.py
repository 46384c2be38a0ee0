"""Labelled words for token classification: the keys of ``data: {kind: labelled-tokens}``. `token_samples` prepares the data.

Reading a config must not import torch and numpy, so the methods import them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from bellwether.trainer.data.tokenized import TokenizedData

if TYPE_CHECKING:
    from torch import Tensor

    from bellwether.trainer.data import Dataset, Samples


class LabelledTokens(TokenizedData):
    """Sentences as lists of words, with a class for each word, as for named entities."""

    metric: ClassVar[tuple[str, bool]] = ("val/f1", True)
    reads_words: ClassVar[bool] = True

    kind: Literal["labelled-tokens"]
    source: str = Field(
        description="a file, folder or glob (.jsonl, .parquet, or .txt with a word and its label on each line), or a hub dataset"
    )
    words_column: str = Field("tokens", description="name of the column with the list of words")
    label_column: str = Field("ner_tags", description="name of the column with the list of labels, one for each word")

    @property
    def results(self) -> tuple[str, ...]:
        return ("loss", "accuracy", "f1", "f1_macro", "matthews")

    def key_of(self, column: str) -> str:
        return "label_column" if column == self.label_column else "words_column"

    def prepare(self) -> dict[str, Any]:
        from bellwether.trainer.data import token_samples

        return token_samples.prepare(self)

    def open(self, facts: dict[str, Any]) -> Dataset:
        from bellwether.trainer.data import token_samples

        return token_samples.open_prepared(self, facts)

    def zeros(self, count: int) -> dict[str, Tensor]:
        import torch

        zeros = torch.zeros((count, self.sequence_length), dtype=torch.int64)
        return {"input_ids": zeros, "attention_mask": torch.ones_like(zeros), "labels": zeros.clone()}

    def assumed(self, samples: Samples, classes: int) -> tuple[Dataset, str]:
        from bellwether.trainer.data import Dataset

        dataset = Dataset(samples, samples, classes=classes, labels=[str(i) for i in range(classes)])
        return dataset, f"{classes:,} classes: the data were not read"
