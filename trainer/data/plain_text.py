"""What the kinds of text without labels have in common: the keys of the files, of the documents in them and of the tokenizer."""

from __future__ import annotations

import codecs
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from bellwether.trainer.config.schema.data import DataConfig
from bellwether.trainer.config.schema.section import TOKENS


def encoding_name(name: str) -> str:
    """Checks ``data.encoding``."""
    try:
        is_of_text = name == "auto" or codecs.lookup(name)._is_text_encoding
    except (LookupError, ValueError):
        is_of_text = False
    if not is_of_text:
        raise ValueError("no such encoding; write auto, or one of Python's, such as latin-1, cp1252 or utf-16")
    return name


class PlainText(DataConfig):
    """Documents, tokenized once into a stream of tokens.

    Attributes:
        trained: values of `tokenizer` for a vocabulary that is made from the corpus.
        special_tokens: those that a given tokenizer must have, as ``cls``.
    """

    has_sets: ClassVar[bool] = True
    trained: ClassVar[tuple[str, ...]] = ("train",)
    special_tokens: ClassVar[tuple[str, ...]] = ("cls", "sep", "mask")

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

    def prepare(self) -> dict[str, Any]:
        from bellwether.trainer.data import text_samples

        return text_samples.prepare(self)

    def is_local(self) -> bool:
        from bellwether.trainer.data import text_sources
        from bellwether.trainer.data.cache import local_path

        has_local_tokenizer = self.tokenizer in self.trained or local_path("data.tokenizer", self.tokenizer).exists()
        return has_local_tokenizer and text_sources.is_local(self)
