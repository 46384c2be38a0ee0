"""Labelled text for fine-tuning: the keys of ``data: {kind: labelled-text}``. `labelled_samples` prepares the data.

Reading a config must not import torch and numpy, so the methods import them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from bellwether.trainer.data.tokenized import TokenizedData

if TYPE_CHECKING:
    from torch import Tensor

    from bellwether.trainer.data import Dataset, Samples


class LabelledText(TokenizedData):
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

    @property
    def metric(self) -> tuple[str, bool]:  # type: ignore[override]
        return ("val/accuracy" if self.task == "classification" else "val/pearson", True)

    @property
    def results(self) -> tuple[str, ...]:
        of_task = {"classification": ("accuracy", "f1", "f1_macro", "matthews"), "regression": ("pearson", "spearman")}
        return ("loss", *of_task[self.task])

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
