"""Labelled text for fine-tuning: the keys of ``data: {kind: labelled-text}``. `labelled_samples` prepares the data.

Reading a config must not import torch and numpy, so the methods import them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from bellwether.trainer.config.schema.data import DataConfig
from bellwether.trainer.config.schema.section import TOKENS
from bellwether.trainer.data.text import encoding_name

if TYPE_CHECKING:
    from torch import Tensor

    from bellwether.trainer.data import Dataset, Samples


class LabelledText(DataConfig):
    """Texts, or pairs of texts, with a class or a number each, for fine-tuning."""

    kind: Literal["labelled-text"]
    source: str = Field(
        "python-docs",
        description="python-docs (built in: the package of a docstring), a file, folder or glob, or the name of a hub dataset",
    )
    text_columns: Annotated[list[str], Field(min_length=1, max_length=2)] = Field(
        ["text"], description="name of the text column, or of the two columns of a pair"
    )
    label_column: str = Field("label", description="name of the label column")
    column_names: list[str] = Field(
        [], description="names of all columns, for .csv and .tsv files whose first row does not name them"
    )
    encoding: Annotated[str, AfterValidator(encoding_name)] = Field(
        "auto", description="encoding of the files, such as latin-1; auto: by their byte order mark, else UTF-8"
    )
    task: Literal["classification", "regression"] = Field(
        "classification",
        description="classification: labels are classes, by name or number; regression: labels are numbers",
    )
    tokenizer: str = Field(
        "init",
        description="init: that of model.init; or a vocabulary file, a tokenizer folder, or the name of one on the hub",
    )
    lowercase: bool = Field(True, description="lowercase the text and strip accents (for a vocabulary file)")
    sequence_length: Annotated[int, Field(ge=8)] = Field(
        128,
        description="longest sequence, special tokens included; longer texts are cut at the end, of a pair the longer one first",
        json_schema_extra=TOKENS,
    )

    @model_validator(mode="after")
    def _tokenizer(self) -> LabelledText:
        if self.tokenizer == "init":
            raise ValueError(
                "tokenizer: none is named, and no model.init to take it from; name a vocabulary file or a tokenizer folder"
            )
        return self

    @model_validator(mode="after")
    def _columns(self) -> LabelledText:
        names = [*self.text_columns, self.label_column]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"text_columns: {twice!r} is named twice; name each column once")
        return self

    def key_of(self, column: str) -> str:
        """The key that names a column."""
        return "label_column" if column == self.label_column else "text_columns"

    def is_local(self) -> bool:
        from bellwether.trainer.data import text_sources
        from bellwether.trainer.data.cache import local_path

        return local_path("data.tokenizer", self.tokenizer).exists() and text_sources.is_local(self)

    @property
    def metric(self) -> tuple[str, bool]:  # type: ignore[override]
        return ("val/accuracy" if self.task == "classification" else "val/pearson", True)

    def prepare(self) -> dict[str, Any]:
        from bellwether.trainer.data import labelled_samples

        return labelled_samples.prepare(self)

    def open(self, facts: dict[str, Any]) -> Dataset:
        from bellwether.trainer.data import labelled_samples

        return labelled_samples.open_prepared(self, facts)

    def zeros(self, count: int) -> dict[str, Tensor]:
        import torch

        shape = (count, self.sequence_length)
        batch = {name: torch.zeros(shape, dtype=torch.int64) for name in ("input_ids", "token_type_ids")}
        labels = torch.zeros(count, dtype=torch.int64 if self.task == "classification" else torch.float32)
        return {**batch, "attention_mask": torch.ones(shape, dtype=torch.int64), "labels": labels}

    def assumed(self, samples: Samples, classes: int) -> tuple[Dataset, str]:
        from bellwether.trainer.data import Dataset

        labels = None if self.task == "regression" else [str(i) for i in range(classes)]
        dataset = Dataset(samples, samples, classes=len(labels) if labels else None, labels=labels)
        return dataset, "regression" if labels is None else f"{classes:,} classes: the data were not read"
