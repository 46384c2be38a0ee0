"""Questions with a text that holds the answer: the keys of ``data: {kind: question-answering}``. `question_samples` prepares the data.

Reading a config must not import torch and numpy, so the methods import them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bellwether.trainer.config.schema.section import TOKENS, Count
from bellwether.trainer.data.tokenized import TokenizedData

if TYPE_CHECKING:
    from torch import Tensor

    from bellwether.trainer.data import Dataset, Samples


class QuestionAnswering(TokenizedData):
    """Extractive question answering, as SQuAD 1.1 and 2.0: long texts are read in overlapping windows."""

    metric: ClassVar[tuple[str, bool]] = ("val/f1", True)

    kind: Literal["question-answering"]
    source: str = Field(
        description="a .json file of SQuAD, files of rows with question, context and answers (.jsonl, .parquet), or a hub dataset"
    )
    sequence_length: Annotated[int, Field(ge=16)] = Field(
        384, description="length of a window: question, part of the text and special tokens", json_schema_extra=TOKENS
    )
    stride: Annotated[int, Field(ge=0)] = Field(
        128, description="tokens that neighbouring windows of a text share", json_schema_extra=TOKENS
    )
    max_answer: Count = Field(30, description="longest answer that is predicted", json_schema_extra=TOKENS)

    @property
    def results(self) -> tuple[str, ...]:
        return ("loss", "accuracy", "exact_match", "f1")

    @model_validator(mode="after")
    def _stride(self) -> QuestionAnswering:
        if self.stride > self.sequence_length // 2:
            raise ValueError(
                f"stride: windows of {self.sequence_length} tokens share at most half of them; write {self.sequence_length // 2} or less"
            )
        return self

    def key_of(self, column: str) -> str:
        return "source"

    def prepare(self) -> dict[str, Any]:
        from bellwether.trainer.data import question_samples

        return question_samples.prepare(self)

    def open(self, facts: dict[str, Any]) -> Dataset:
        from bellwether.trainer.data import question_samples

        return question_samples.open_prepared(self, facts)

    def zeros(self, count: int) -> dict[str, Tensor]:
        import torch

        zeros = torch.zeros((count, self.sequence_length), dtype=torch.int64)
        named = {name: zeros.clone() for name in ("input_ids", "token_type_ids", "context")}
        return {**named, "attention_mask": torch.ones_like(zeros), "labels": torch.zeros((count, 2), dtype=torch.int64)}

    def assumed(self, samples: Samples, classes: int) -> tuple[Dataset, str]:
        from bellwether.trainer.data import Dataset

        return Dataset(samples, samples), "the data were not read"
