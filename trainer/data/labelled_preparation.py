"""What the preparations of all kinds of labelled text have in common: sources, tokenizer, cache entry and summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bellwether.trainer.data import text_sources, tokenizer
from bellwether.trainer.data.cache import digest, prepared
from bellwether.trainer.data.summary import DataSummary
from bellwether.trainer.data.text_sources import TextSource

if TYPE_CHECKING:
    from bellwether.trainer.data.tokenized import TokenizedData

Sources = Mapping[str, TextSource]  # by key: data.source, and data.validation where it is set


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
    if isinstance(config.validation, str):
        sources["data.validation"] = text_sources.locate(config, "data.validation", config.validation)
    whole = {
        **key, "sources": {key: source.fingerprint for key, source in sources.items()}, "column_names": config.column_names,
        "encoding": config.encoding, "length": config.sequence_length, "tokenizer": digest(words.backend_tokenizer.to_str()),
        "share": None if config.validation is not None else config.validation_share,
    }  # fmt: skip
    entry = prepared(config.cache, name, whole, lambda folder: build(words, sources, folder))
    summary = DataSummary.read(entry)
    summary.name = config.source
    summary.source.add(sources["data.source"].listing)
    if "data.validation" in sources:
        summary.held_out["validation"].add(sources["data.validation"].listing)
    return {"entry": str(entry), "tokenizer": tokenizer.stored(config, words), "summary": summary.to_json()}


def opened(facts: Mapping[str, Any]) -> tuple[Path, Any, DataSummary | None]:
    """Cache entry, tokenizer and summary that `prepare` has told of."""
    summary = DataSummary.from_json(facts["summary"]) if "summary" in facts else None
    return Path(facts["entry"]), tokenizer.open_prepared(facts["tokenizer"]), summary
