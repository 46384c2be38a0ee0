"""Text for masked language modelling: the keys of ``data: {kind: text}``. `text_samples` prepares the data.

Reading a config must not import torch and numpy, so the methods import them.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from bellwether.trainer.config.schema.data import DataConfig
from bellwether.trainer.config.schema.section import FRACTION, TOKENS

if TYPE_CHECKING:
    from torch import Tensor

    from bellwether.trainer.data import Dataset, Samples


_MOST_MASKED = 0.45  # of a row: with separators, at least half of its tokens can be masked


def encoding_name(name: str) -> str:
    """Checks ``data.encoding``."""
    try:
        is_of_text = name == "auto" or codecs.lookup(name)._is_text_encoding
    except (LookupError, ValueError):
        is_of_text = False
    if not is_of_text:
        raise ValueError("no such encoding; write auto, or one of Python's, such as latin-1, cp1252 or utf-16")
    return name


class TextData(DataConfig):
    """Text for masked language modelling, packed into sequences without padding."""

    has_sets: ClassVar[bool] = True

    kind: Literal["text"]
    source: str = Field(
        "python-docs", description="python-docs (built in), a file, folder or glob, or the name of a hub dataset"
    )
    column: str = Field("text", description="name of the text column")
    encoding: Annotated[str, AfterValidator(encoding_name)] = Field(
        "auto", description="encoding of the files, such as latin-1; auto: by their byte order mark, else UTF-8"
    )
    documents: Literal["auto", "lines", "paragraphs", "files"] = Field(
        "auto",
        description="what a document of a text file is. lines: each line; paragraphs: what blank lines separate; files: each file; "
        "auto: paragraphs or lines, decided for each file and shown",
    )
    tokenizer: str = Field(
        "train",
        description="train (WordPiece, trained on this corpus), a vocabulary file, a tokenizer folder, or the name of one "
        "on the hub; left out beside model.init: the tokenizer of that folder",
    )
    vocabulary_size: Annotated[int, Field(ge=64, le=2**24)] = Field(
        30522,
        description="size of a trained WordPiece vocabulary; ignored for a given tokenizer",
        json_schema_extra=TOKENS,
    )
    lowercase: bool = Field(
        True, description="lowercase the text and strip accents (for a trained vocabulary or a vocabulary file)"
    )
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

    @model_validator(mode="after")
    def _check_packing(self) -> TextData:
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

    def prepare(self) -> dict[str, Any]:
        from bellwether.trainer.data import text_samples

        return text_samples.prepare(self)

    def open(self, facts: dict[str, Any]) -> Dataset:
        from bellwether.trainer.data import text_samples

        return text_samples.open_prepared(self, facts)

    def is_local(self) -> bool:
        from bellwether.trainer.data import text_sources
        from bellwether.trainer.data.cache import local_path

        has_local_tokenizer = self.tokenizer == "train" or local_path("data.tokenizer", self.tokenizer).exists()
        return has_local_tokenizer and text_sources.is_local(self)

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
        return batch

    def assumed(self, samples: Samples, classes: int) -> tuple[Dataset, str]:
        from bellwether.trainer.data import Dataset

        size = self.vocabulary_size
        note = f"a vocabulary of {size:,}, from data.vocabulary_size: the tokenizer was not read"
        return Dataset(samples, samples, vocabulary_size=size, next_sentence=self.next_sentence), note
