"""Texts as streams of token numbers: tokenized once, by all cores, in shards that a killed preparation leaves to the next."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bellwether.trainer import run_paths
from bellwether.trainer.data import sentences, shards
from bellwether.trainer.data.cache import PARTS, digest, prepared
from bellwether.trainer.data.corpus import Corpus, read_part
from bellwether.trainer.data.packing import ends_path, sentences_path
from bellwether.trainer.log import EVERY_RANK

if TYPE_CHECKING:
    from bellwether.trainer.data.plain_text import PlainText

log = logging.getLogger(__name__)

_REVISION = 2
_PIECE = 100_000  # characters; a longer document is split at white space, so that the tokenizer's threads share it
_CHUNK = 1_000_000  # characters tokenized at a time
_FILES = ("train", "held_out")
_COUNTS = "tokens.json"

Mask = npt.NDArray[np.bool_]


def dtype(vocabulary_size: int) -> str:
    """The type of a stored token."""
    return "uint16" if vocabulary_size <= 2**16 else "uint32"


def prepare(config: PlainText, corpus: Corpus, words: Any, size: int, mask: Mask | None) -> Path:
    """Tokenizes the texts of a corpus, or finds them tokenized.

    Args:
        words: the tokenizer, and ``size``: that of its vocabulary.
        mask: the texts that are held out; None: none.

    Returns:
        a directory with ``train.bin`` and ``held_out.bin``, and beside each the ends of its documents (`packing.Stream`).
    """
    text = words.backend_tokenizer.to_str()
    rule = getattr(config, "sentences", None)
    key: dict[str, Any] = {
        "revision": _REVISION, "corpus": corpus.name, "dtype": dtype(size), "tokenizer": digest(text),
        "share": None if mask is None else config.validation_share,
    }  # fmt: skip
    if rule is not None:
        key["sentences"] = f"{rule} {sentences.REVISION}"

    began = time.monotonic()

    def work(folder: Path, claims: Path) -> None:
        _tokenize(corpus, text, words.unk_token_id, dtype(size), mask, rule, folder, claims)

    def build(folder: Path) -> None:
        count = _merge(folder, dtype(size), rule)
        seconds = time.monotonic() - began
        log.info("%s tokens, tokenized in %.1f s: %s", f"{count:,}", seconds, folder.parent, extra=EVERY_RANK)

    return prepared(config.cache, "tokens", key, build, shared=work)


def facts(entry: Path) -> dict[str, int]:
    """The number of tokens of a preparation, and of those that are unknown."""
    found: dict[str, int] = json.loads((entry / _COUNTS).read_text(encoding="utf-8"))
    return found


def _tokenize(
    corpus: Corpus,
    tokenizer: str,
    unknown: int | None,
    kind: str,
    mask: Mask | None,
    rule: str | None,
    folder: Path,
    claims: Path,
) -> None:
    file = claims / "tokenizer.json"
    run_paths.publish(file, tokenizer)
    (folder / PARTS).mkdir(exist_ok=True)
    tasks = [
        (part, None if mask is None else mask[begin:end], file, unknown, kind, rule)
        for part, begin, end in corpus.ranges()
    ]
    shards.run(folder / PARTS, claims, "tokens", tasks, _tokenize_part, [part.stat().st_size for part in corpus.parts])


def _merge(folder: Path, kind: str, rule: str | None) -> int:
    """Join the streams of all parts; returns the number of tokens."""
    counts = {"tokens": 0, "unknown": 0}
    paths = [ends_path] if rule is None else [ends_path, sentences_path]
    for name, path in itertools.product(_FILES, paths):
        path(folder / f"{name}.bin").write_bytes(b"")
    with (folder / "train.bin").open("wb") as train, (folder / "held_out.bin").open("wb") as held_out:
        for shard in shards.found(folder / PARTS, "tokens"):
            for name, count in shards.facts(shard).items():
                counts[name] += count
            for name, whole in zip(_FILES, (train, held_out), strict=True):
                before = whole.tell() // np.dtype(kind).itemsize
                for path in paths:
                    ends = np.fromfile(path(shard / f"{name}.bin"), dtype=np.int64) + before
                    with path(folder / f"{name}.bin").open("ab") as all_ends:
                        all_ends.write(ends.tobytes())
                with (shard / f"{name}.bin").open("rb") as part_of_it:
                    shutil.copyfileobj(part_of_it, whole, 1 << 24)
    (folder / _COUNTS).write_text(json.dumps(counts) + "\n", encoding="utf-8")
    return counts["tokens"]


def _tokenize_part(task: tuple[Path, Mask | None, Path, int | None, str, str | None], folder: Path) -> shards.Facts:
    part, mask, file, unknown, kind, rule = task
    encoder = _encoder(file)
    counts = {"tokens": 0, "unknown": 0}
    for name, chosen in zip(_FILES, (None, None) if mask is None else (~mask, mask), strict=True):
        path = folder / f"{name}.bin"
        with contextlib.ExitStack() as stack:
            stream, ends = (stack.enter_context(each.open("wb")) for each in (path, ends_path(path)))
            sentence_ends = None if rule is None else stack.enter_context(sentences_path(path).open("wb"))
            if mask is None and name == "held_out":
                continue
            written, end, sentence_end = 0, 0, 0
            for chunk, is_last, ends_sentence in _chunks(read_part(part, chosen), rule):
                for encoding, ends_here, ends_one in zip(
                    encoder.encode_batch_fast(chunk, add_special_tokens=False), is_last, ends_sentence, strict=True
                ):
                    ids = np.array(encoding.ids, dtype=kind)
                    stream.write(ids.tobytes())
                    written += len(ids)
                    if ends_here and written > end:  # a document without tokens has no end
                        end = written
                        ends.write(np.int64(end).tobytes())
                    if sentence_ends is not None and (ends_here or ends_one) and written > sentence_end:
                        sentence_end = written
                        sentence_ends.write(np.int64(written).tobytes())
                    counts["tokens"] += len(ids)
                    if unknown is not None:
                        counts["unknown"] += int(np.count_nonzero(ids == unknown))
    return counts


@lru_cache(1)
def _encoder(file: Path) -> Any:
    """The tokenizer, set to encode texts of any length. The characters "[MASK]" in a text are tokenized as text."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(file))
    encoder.no_padding()
    encoder.no_truncation()
    encoder.encode_special_tokens = True
    return encoder


def _chunks(texts: Iterable[str], rule: str | None = None) -> Iterator[tuple[list[str], list[bool], list[bool]]]:
    """Pieces of texts to tokenize together, and whether each is the last of its text, and of its sentence by a rule of `sentences`."""
    chunk: list[str] = []
    is_last: list[bool] = []
    ends_sentence: list[bool] = []
    size = 0
    for text in texts:
        for (piece, ends_one), following in itertools.pairwise(itertools.chain(_parts(text, rule), [None])):  # type: ignore[misc]
            chunk.append(piece)
            is_last.append(following is None)
            ends_sentence.append(ends_one)
            size += len(piece)
            if size >= _CHUNK:
                yield chunk, is_last, ends_sentence
                chunk, is_last, ends_sentence, size = [], [], [], 0
    if chunk:
        yield chunk, is_last, ends_sentence


def _parts(text: str, rule: str | None) -> Iterator[tuple[str, bool]]:
    """The pieces of a text, and whether each is the last of a sentence."""
    if rule is None:
        yield from ((piece, False) for piece in pieces(text))
        return
    for sentence in sentences.split(text, rule) if text else [text]:
        *others, last = pieces(sentence)
        yield from ((piece, False) for piece in others)
        yield last, True


def pieces(text: str) -> Iterator[str]:
    """A text cut at white space into pieces of a bounded length."""
    while len(text) > _PIECE:
        cut = max(text.rfind(space, 1, _PIECE) for space in " \n\t")
        if cut < 1:
            break  # no white space to split at
        yield text[:cut]
        text = text[cut:]
    yield text
