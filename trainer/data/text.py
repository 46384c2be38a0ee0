"""Text for masked language modelling: the keys of ``data: {kind: text}``. `text_samples` prepares the data.

Reading a config must not import torch and numpy, so the methods import them.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from bellwether.trainer.config.schema.data import DataConfig
from bellwether.trainer.config.schema.section import FRACTION, TOKENS

if TYPE_CHECKING:
    from torch import Tensor

    from bellwether.trainer.data import Dataset, Samples


def _encoding(name: str) -> str:
    try:
        is_of_text = name == "auto" or codecs.lookup(name)._is_text_encoding
    except (LookupError, ValueError):
        is_of_text = False
    if not is_of_text:
        raise ValueError("no such encoding; write auto, or one of Python's, such as latin-1, cp1252 or utf-16")
    return name


class TextData(DataConfig):
    """Text for masked language modelling, packed into sequences without padding."""

    kind: Literal["text"]
    source: str = Field(
        "python-docs", description="python-docs (built in), a file, folder or glob, or the name of a hub dataset"
    )
    column: str = Field("text", description="name of the text column")
    encoding: Annotated[str, AfterValidator(_encoding)] = Field(
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

    @property
    def masked_tokens(self) -> int:
        """Number of tokens to predict in each sequence."""
        return max(1, round(self.mask_share * (self.sequence_length - 2)))

    @property
    def tokens_per_sample(self) -> int:
        return self.sequence_length

    def load(self) -> Dataset:
        from bellwether.trainer.data import text_samples

        return text_samples.load(self)

    def is_local(self) -> bool:
        from bellwether.trainer.data import text_sources
        from bellwether.trainer.data.cache import local_path

        has_local_tokenizer = self.tokenizer == "train" or local_path("data.tokenizer", self.tokenizer).exists()
        return has_local_tokenizer and text_sources.is_local(self)

    def zeros(self, count: int) -> dict[str, Tensor]:
        import torch

        ids = torch.zeros(count, self.sequence_length, dtype=torch.int64)
        masked = torch.zeros(count, self.masked_tokens, dtype=torch.int64)
        return {"input_ids": ids, "masked_positions": masked, "labels": torch.zeros_like(masked)}

    def assumed(self, samples: Samples, classes: int) -> tuple[Dataset, str]:
        from bellwether.trainer.data import Dataset

        size = self.vocabulary_size
        note = f"a vocabulary of {size:,}, from data.vocabulary_size: the tokenizer was not read"
        return Dataset(samples, samples, vocabulary_size=size), note
