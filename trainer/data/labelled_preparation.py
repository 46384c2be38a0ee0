"""What the preparations of all kinds of labelled text have in common: sources, tokenizer, cache entry, summary and token files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bellwether.trainer.data import Dataset, text_sources, tokenizer
from bellwether.trainer.data.cache import digest, prepared
from bellwether.trainer.data.summary import DataSummary, SourceSummary
from bellwether.trainer.data.text_sources import TextSource

if TYPE_CHECKING:
    from bellwether.trainer.data import Samples, Scorer
    from bellwether.trainer.data.tokenized import TokenizedData

Sources = Mapping[str, TextSource]  # by key: data.source, and those of held-out data


def prepare(
    config: TokenizedData, name: str, key: Mapping[str, Any], build: Callable[[Any, Sources, Path], None]
) -> dict[str, Any]:
    """Prepares labelled text or finds it prepared. See `bellwether.trainer.config.schema.data.DataConfig.prepare`.

    Args:
        name: kind of the cache entry.
        key: what the content depends on, besides the keys that all kinds have.
        build: writes the content and its summary to a folder, given the tokenizer and the sources.
    """
    words = tokenizer.given(config)
    sources = {"data.source": text_sources.locate(config, "data.source", config.source)}
    for _, each, value in config.held_out_keys():
        sources[each] = text_sources.locate(config, each, value)
    whole = {
        **key, "sources": {key: source.fingerprint for key, source in sources.items()}, "column_names": config.column_names,
        "encoding": config.encoding, "length": config.sequence_length, "tokenizer": digest(words.backend_tokenizer.to_str()),
        "share": None if config.validation is not None else config.validation_share,
    }  # fmt: skip
    entry = prepared(config.cache, name, whole, lambda folder: build(words, sources, folder))
    summary = DataSummary.read(entry)
    summary.name = config.source
    summary.source.add(sources["data.source"].listing)
    for held_out, each, _ in config.held_out_keys():
        summary.held_out[held_out].add(sources[each].listing)
    return {"entry": str(entry), "tokenizer": tokenizer.stored(config, words), "summary": summary.to_json()}


def held_out_parts(config: TokenizedData) -> dict[str, str]:
    """Of each set of held-out data, by its name: the name of its files. A share of the training data is a set too."""
    if not isinstance(config.validation, dict):
        return {"validation": "validation"}
    return {name: f"validation-{name}" for name in config.validation}


def dataset(
    config: TokenizedData, train: Samples, parts: Mapping[str, Samples], scorer: Callable[[Any], Scorer], **facts: Any
) -> Dataset:
    """A dataset with one or several sets of held-out data, of which the first decides.

    Args:
        parts: by the names of `held_out_parts`.
        scorer: of a part.
    """
    score = {name: scorer(part) for name, part in parts.items()}
    first = next(iter(parts))
    if len(parts) > 1:
        facts |= {"held_out": parts, "set_scores": score}
    return Dataset(train, parts[first], score=score[first], **facts)


def opened(facts: Mapping[str, Any]) -> tuple[Path, Any, DataSummary | None]:
    """Cache entry, tokenizer and summary from the facts that `prepare` returns; no summary where they are without it."""
    summary = DataSummary.from_json(facts["summary"]) if "summary" in facts else None
    return Path(facts["entry"]), tokenizer.open_prepared(facts["tokenizer"]), summary


class TokenWriter:
    """Writes the token stream of one split, and counts its tokens.

    The files are ``{part}-ids.bin``, uint32; ``{part}-types.bin``, uint8, where the tokenizer has token types; and at the end
    ``{part}-ends.npy``, where each row ends in the stream.

    Args:
        unknown: number of the token ``[UNK]``.
    """

    def __init__(self, folder: Path, part: str, summary: SourceSummary, unknown: int | None) -> None:
        self._folder, self._part, self._summary, self._unknown = folder, part, summary, unknown
        self._ids, self._types = (folder / f"{part}-ids.bin").open("wb"), (folder / f"{part}-types.bin").open("wb")
        self._lengths: list[int] = []

    def __enter__(self) -> TokenWriter:
        return self

    def write(self, encoded: Any) -> None:
        """Append the rows of a `BatchEncoding` of transformers."""
        for row in encoded["input_ids"]:
            ids = np.array(row, dtype=np.uint32)
            self._ids.write(ids.tobytes())
            self._lengths.append(len(ids))
            self._summary.tokens += len(ids)
            self._summary.unknown_tokens += int(np.count_nonzero(ids == self._unknown))
        self._types.writelines(bytes(row) for row in encoded.get("token_type_ids", ()))

    def __exit__(self, *error: object) -> None:
        has_types = self._types.tell() > 0
        self._ids.close()
        self._types.close()
        if not has_types:
            (self._folder / f"{self._part}-types.bin").unlink()
        np.save(self._folder / f"{self._part}-ends.npy", np.cumsum(self._lengths, dtype=np.int64))
