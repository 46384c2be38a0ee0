"""Text for language modelling with carried hidden state: the keys of ``data: {kind: token-stream}``.

Reading a config must not import torch and numpy, so the methods import them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bellwether.trainer.config.schema.section import TOKENS, Count, unit
from bellwether.trainer.data.plain_text import PlainText

if TYPE_CHECKING:
    from torch import Tensor

    from bellwether.trainer.data import Dataset, Samples


class TokenStreamData(PlainText):
    """Text as parallel streams of tokens, for language models that carry their state from window to window."""

    carries_state: ClassVar[bool] = True
    metric: ClassVar[tuple[str, bool]] = ("val/perplexity", False)
    trained: ClassVar[tuple[str, ...]] = ("words", "train")
    special_tokens: ClassVar[tuple[str, ...]] = ()

    kind: Literal["token-stream"]
    tokenizer: str = Field(
        "words",
        description="words (the words of this corpus), train (WordPiece, trained on it), a vocabulary file, a tokenizer folder, or the "
        "name of one on the hub",
    )
    words: Literal["whitespace", "punctuation"] = Field(
        "whitespace",
        description="what separates words, of tokenizer: words. whitespace: corpora that are split into words already, as the Penn "
        "Treebank and WikiText; punctuation: any text, with each punctuation mark as a word",
    )
    vocabulary_size: Annotated[int, Field(ge=64, le=2**24)] = Field(
        50000,
        description="largest vocabulary that is made, of the most frequent words; ignored for a given tokenizer",
        json_schema_extra=TOKENS,
    )
    minimum_count: Count = Field(
        3,
        description="how often a word occurs in the training text to be in the vocabulary, of tokenizer: words",
        json_schema_extra=unit("occurrences"),
    )
    lowercase: bool = Field(
        False, description="lowercase the text and strip accents (for a vocabulary that is made, or a vocabulary file)"
    )
    length: Annotated[int, Field(ge=1)] = Field(
        70,
        description="tokens of a window, through which the gradient goes back; a sample is a window of a stream",
        json_schema_extra=TOKENS,
    )
    varying_length: bool = Field(
        False,
        description="draw the length of each step's windows: around `length`, or one in twenty times around half of it, with standard "
        "deviation 5; the learning rate of the step is multiplied by its share of `length` (Merity et al. 2017)",
    )
    validation_streams: Count = Field(
        10,
        description="parallel streams into which held-out text is cut; each starts without context, so fewer give a slightly lower "
        "perplexity and more are faster",
        json_schema_extra=unit("streams"),
    )

    @property
    def results(self) -> tuple[str, ...]:
        return ("loss", "accuracy", "perplexity", "perplexity_cache")

    @model_validator(mode="after")
    def _masks_nothing(self) -> TokenStreamData:
        if self.words != "whitespace" and self.tokenizer != "words":
            raise ValueError("words: belongs to tokenizer: words; remove it")
        return self

    @property
    def tokens_per_sample(self) -> int:
        return self.length

    @property
    def unknown_advice(self) -> str:
        if self.tokenizer != "words":
            return super().unknown_advice
        split = "" if self.words == "punctuation" else " split text that is not by data.words: punctuation,"
        return f"lower data.minimum_count,{split} choose another data.tokenizer"

    def open(self, facts: dict[str, Any]) -> Dataset:
        from bellwether.trainer.data import stream_samples

        return stream_samples.open_prepared(self, facts)

    def zeros(self, count: int) -> dict[str, Tensor]:
        import torch

        from bellwether.trainer.data.window_lengths import MOST_ABOVE

        longest = self.length + (MOST_ABOVE if self.varying_length else 0)
        ids = torch.zeros(count, longest, dtype=torch.int64)
        numbers = torch.arange(count)
        return {"input_ids": ids, "labels": ids.clone(), "streams": numbers, "starts": numbers < 0}

    def assumed(self, samples: Samples, classes: int) -> tuple[Dataset, str]:
        from bellwether.trainer.data import Dataset

        size = self.vocabulary_size
        note = f"a vocabulary of {size:,}, from data.vocabulary_size: the text was not read"
        return Dataset(samples, samples, vocabulary_size=size), note
