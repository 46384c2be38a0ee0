"""What all kinds of labelled text have in common: the keys of the tokenizer and of the files."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, model_validator

from bellwether.trainer.config.schema.data import DataConfig
from bellwether.trainer.config.schema.section import TOKENS
from bellwether.trainer.data.plain_text import encoding_name


class TokenizedData(DataConfig):
    """Rows with columns, which are tokenized one by one and padded in each batch.

    Attributes:
        reads_words: whether text files hold a word and its label on each line, as those of CoNLL.
    """

    reads_words: ClassVar[bool] = False
    has_sets: ClassVar[bool] = True

    column_names: list[str] = Field(
        [], description="names of all columns, for .csv and .tsv files whose first row does not name them"
    )
    encoding: Annotated[str, AfterValidator(encoding_name)] = Field(
        "auto", description="encoding of the files, such as latin-1; auto: by their byte order mark, else UTF-8"
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
    def _tokenizer(self) -> TokenizedData:
        if self.tokenizer == "init":
            raise ValueError(
                "tokenizer: none is named, and no model.init to take it from; name a vocabulary file or a tokenizer folder"
            )
        return self

    def key_of(self, column: str) -> str:
        """The key that names a column."""
        raise NotImplementedError

    def is_local(self) -> bool:
        from bellwether.trainer.data import text_sources
        from bellwether.trainer.data.cache import local_path

        return local_path("data.tokenizer", self.tokenizer).exists() and text_sources.is_local(self)
