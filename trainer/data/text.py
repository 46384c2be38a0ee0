"""Text for masked language modelling: the keys of ``data: {kind: text}``. `text_samples` prepares the data.

Reading a config must not import torch and numpy, so the methods import them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from bellwether.trainer.config.schema.section import FRACTION, TOKENS
from bellwether.trainer.data.plain_text import PlainText

if TYPE_CHECKING:
    from torch import Tensor

    from bellwether.trainer.data import Dataset, Samples


_MOST_MASKED = 0.45  # of a row: with separators, at least half of its tokens can be masked


class TextData(PlainText):
    """Text for masked language modelling, packed into sequences without padding."""

    kind: Literal["text"]
    sequence_length: Annotated[int, Field(ge=8)] = Field(
        128, description="sequence length, [CLS] and [SEP] included", json_schema_extra=TOKENS
    )
    mask_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.15, description="fraction of the tokens to mask and predict", json_schema_extra=FRACTION
    )

    whole_words: bool = Field(
        False, description="mask whole words instead of single tokens, as many tokens as mask_share says"
    )
    random_tokens: Literal["ordinary", "all"] = Field(
        "ordinary",
        description="what one in ten masked tokens is replaced by. ordinary: any token but the special ones; all: these too, as "
        "versions before December 2026 did",
    )
    packing: Literal["stream", "separated", "documents"] = Field(
        "separated",
        description="how documents are packed into sequences. stream: without anything between them, as versions before December 2026 "
        "did; separated: with [SEP] after each; documents: separated, with attention inside a document only and positions that restart",
    )
    next_sentence: bool = Field(
        False,
        description="pairs of segments, of which half the second ones are from another document, and their prediction (BERT's "
        "original objective)",
    )

    sentences: Literal["lines", "punctuation"] | None = Field(
        None,
        description="with next_sentence, segments of whole sentences of one document, padded, as BERT's were; what a sentence is. lines: "
        "each line; punctuation: by . ! and ? and blank lines; null: rows without padding, cut in two between any two tokens",
    )

    @model_validator(mode="after")
    def _check_packing(self) -> TextData:
        if self.sentences is not None and not self.next_sentence:
            raise ValueError("sentences: they make segments, and there are none; write next_sentence: true, or null")
        if self.sentences == "lines" and self.documents == "lines":
            raise ValueError("sentences: each document is one line; write documents: paragraphs or files")
        if self.next_sentence and self.packing == "documents":
            raise ValueError("packing: with next_sentence attention spans both segments; write separated or stream")
        if self.packing != "stream" and self.mask_share > _MOST_MASKED:
            raise ValueError(
                f"mask_share: at most {_MOST_MASKED}, as separators are not masked; or write packing: stream"
            )
        return self

    @property
    def masked_tokens(self) -> int:
        """Number of tokens to predict in each sequence."""
        return max(1, round(self.mask_share * (self.sequence_length - (3 if self.next_sentence else 2))))

    @property
    def tokens_per_sample(self) -> int:
        return self.sequence_length

    def open(self, facts: dict[str, Any]) -> Dataset:
        from bellwether.trainer.data import text_samples

        return text_samples.open_prepared(self, facts)

    def zeros(self, count: int) -> dict[str, Tensor]:
        import torch

        ids = torch.zeros(count, self.sequence_length, dtype=torch.int64)
        masked = torch.zeros(count, self.masked_tokens, dtype=torch.int64)
        batch = {"input_ids": ids, "masked_positions": masked, "labels": torch.zeros_like(masked)}
        if self.packing == "documents":
            batch |= {"documents": torch.zeros_like(ids), "position_ids": torch.zeros_like(ids)}
        if self.next_sentence:
            batch |= {
                "token_type_ids": torch.zeros_like(ids),
                "next_sentence_label": torch.zeros(count, dtype=torch.int64),
            }
        if self.sentences is not None:
            batch |= {"attention_mask": torch.ones_like(ids), "masked_counts": torch.ones(count, dtype=torch.int64)}
        return batch

    def assumed(self, samples: Samples, classes: int) -> tuple[Dataset, str]:
        from bellwether.trainer.data import Dataset

        size = self.vocabulary_size
        note = f"a vocabulary of {size:,}, from data.vocabulary_size: the tokenizer was not read"
        return Dataset(samples, samples, vocabulary_size=size, next_sentence=self.next_sentence), note
