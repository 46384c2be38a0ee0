"""Labelled text for fine-tuning: the keys of ``data: {kind: labelled-text}``. `labelled_samples` prepares the data.

Reading a config must not import torch and numpy, so the methods import them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from bellwether.trainer.config.schema.data import DataConfig
from bellwether.trainer.config.schema.section import TOKENS

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
    task: Literal["classification", "regression"] = Field(
        "classification",
        description="classification: labels are classes, by name or number; regression: labels are numbers",
    )
    tokenizer: str = Field(
        "",
        description="a vocabulary file, a tokenizer folder, or the name of one on the hub; left out: that of model.init",
        validate_default=False,
    )
    lowercase: bool = Field(True, description="lowercase the text and strip accents (for a vocabulary file)")
    sequence_length: Annotated[int, Field(ge=8)] = Field(
        128,
        description="longest sequence, special tokens included; longer texts are cut at the end, of a pair the longer one first",
        json_schema_extra=TOKENS,
    )

    @model_validator(mode="after")
    def _tokenizer(self) -> LabelledText:
        if not self.tokenizer:
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

    @property
    def metric(self) -> tuple[str, bool]:  # type: ignore[override]
        return ("val/accuracy" if self.task == "classification" else "val/pearson", True)

    def load(self) -> Dataset:
        from bellwether.trainer.data import labelled_samples

        return labelled_samples.load(self)

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
