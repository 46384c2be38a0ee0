"""The texts of a source as prepared: read once from files of any format, cleaned, counted, and stored in parts.

The parts are Arrow files with one column of text, of about `_PART` bytes each. ``hashes.npy`` has a hash of each text, and
``corpus.json`` what was read. Rows without text are left out and counted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import formats, shards
from bellwether.trainer.data.cache import digest, prepared
from bellwether.trainer.data.summary import SourceSummary
from bellwether.trainer.data.text_sources import TextSource
from bellwether.trainer.log import EVERY_RANK

if TYPE_CHECKING:
    from bellwether.trainer.data.plain_text import PlainText

log = logging.getLogger(__name__)

_REVISION = 2
_PART = 4_000_000  # bytes of text in a file, and of files that are read together
_COLUMN = "text"
_FACTS, _HASHES = "corpus.json", "hashes.npy"
_SHARDS = "files"
# Runs of letters and digits that are longer than any word, such as base64. BERT's tokenizer replaces a word of more than
# 100 characters by [UNK], and training a vocabulary takes time quadratic in the length of a word. Each Chinese character is
# a word.
_IN_WORD = r"[^\W_\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]"
_LONG_WORD = re.compile(f"(?<!{_IN_WORD})({_IN_WORD}{{200}}){_IN_WORD}+")
_INVISIBLE = "".join(
    map(chr, (*range(1, 33), 0x7F, 0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), 0x2060, 0xFEFF))
)
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Corpus:
    """The prepared texts of a source.

    Attributes:
        name: identifies the content.
        parts: files with texts, in order; `counts`: the number of texts in each.
        summary: what was read; without what the listing of files says.
        hash_file: the hashes of all texts, in order.
    """

    name: str
    parts: list[Path]
    counts: list[int]
    hash_file: Path
    summary: SourceSummary

    def __len__(self) -> int:
        return sum(self.counts)

    def hashes(self) -> npt.NDArray[np.uint64]:
        """A hash of each text."""
        found: npt.NDArray[np.uint64] = np.load(self.hash_file)
        return found

    def ranges(self) -> Iterator[tuple[Path, int, int]]:
        """Each part with the numbers of its first text, and of the one after its last."""
        begin = 0
        for part, count in zip(self.parts, self.counts, strict=True):
            yield part, begin, begin + count
            begin += count

    def texts(self, chosen: npt.NDArray[np.bool_] | None = None) -> Iterator[str]:
        """The texts, or those that are chosen, in order."""
        for part, begin, end in self.ranges():
            yield from read_part(part, None if chosen is None else chosen[begin:end])


def read_part(part: Path, chosen: npt.NDArray[np.bool_] | None = None) -> Iterator[str]:
    """The texts of a part, or those that are chosen."""
    import pyarrow

    row = 0
    with pyarrow.memory_map(str(part)) as file, pyarrow.ipc.open_stream(file) as stream:
        for batch in stream:
            for text in batch.column(0).to_pylist():
                if chosen is None or chosen[row]:
                    yield text
                row += 1


def load(config: PlainText, source: TextSource) -> Corpus:
    """Reads the texts of a source, or finds them read.

    Raises:
        ConfigError: if a file cannot be read, or there is no text.
    """
    key = {"revision": _REVISION, "source": source.fingerprint, "column": config.column}
    if source.files:
        key |= {"encoding": config.encoding, "documents": config.documents}
        key["formats"] = digest([form.name for _, form in source.files])
    entry = prepared(config.cache, "texts", key, _merge, shared=lambda *folders: _read(config, source, *folders))
    facts = json.loads((entry / _FACTS).read_text(encoding="utf-8"))
    parts = [entry / name for name in facts["parts"]]
    summary = SourceSummary.from_json(facts["summary"])
    corpus = Corpus(entry.name, parts, facts["counts"], entry / _HASHES, summary)
    if not len(corpus):
        advice = summary.first_left_out("name other data")
        raise ConfigError(source.key, source.name, "has no rows with text", advice)
    return corpus


def _read(config: PlainText, source: TextSource, folder: Path, claims: Path) -> None:
    log.info("reading %s %s", source.key, source.name, extra=EVERY_RANK)
    options = formats.Options(config.column, config.encoding, config.documents)
    if source.rows is not None:
        rows = _checked(source.rows(), config, source)
        shards.run(folder, claims, _SHARDS, [(rows, config.column)], _read_rows, [0])
    else:
        groups = list(_groups(source.files))
        tasks = [([(str(file), form.name) for file, form in group], options) for group in groups]
        sizes = [sum(file.stat().st_size for file, _ in group) for group in groups]
        try:
            shards.run(folder, claims, _SHARDS, tasks, _read_files, sizes)
        except formats.NoColumn as error:
            raise ConfigError("data.column", config.column, f"{error.file} {error.problem}", error.advice) from error
        except formats.Unreadable as error:
            raise source.unreadable(error) from error


def _merge(folder: Path) -> None:
    """Write what all parts hold to one file, and their hashes to another."""
    summary = SourceSummary()
    parts, counts = [], []
    done = shards.found(folder, _SHARDS)
    for shard in done:
        facts = shards.facts(shard)
        summary.add(SourceSummary.from_json(facts["summary"]))
        parts += [f"{shard.name}/{name}" for name in facts["parts"]]
        counts += facts["counts"]
    # By bits of the length until here, so that parts can be added.
    bits = sorted(map(int, summary.histogram))
    summary.histogram = {f"below {2**n:,}": summary.histogram[str(n)] for n in bits}
    found = {"parts": parts, "counts": counts, "summary": summary.to_json()}
    (folder / _FACTS).write_text(json.dumps(found), encoding="utf-8")
    np.save(folder / _HASHES, np.concatenate([np.load(shard / _HASHES) for shard in done]))


def _groups(files: Iterable[tuple[Path, formats.TextFormat]]) -> Iterator[list[tuple[Path, formats.TextFormat]]]:
    """Consecutive files of together about `_PART` bytes."""
    group, size = [], 0
    for file, form in files:
        group.append((file, form))
        size += file.stat().st_size
        if size >= _PART or len(group) >= 10_000:
            yield group
            group, size = [], 0
    if group:
        yield group


def _checked(rows: Any, config: PlainText, source: TextSource) -> Any:
    """The text column of a `datasets.Dataset`."""
    column = config.column
    if column not in rows.column_names:
        have = ", ".join(rows.column_names)
        raise ConfigError("data.column", column, f"no such column in {source.key}", f"it has: {have}")
    feature = rows.features[column]
    column_type = getattr(feature, "dtype", feature)  # lists and structs have none
    if column_type not in ("string", "large_string"):
        raise ConfigError("data.column", column, f"holds {column_type}, not text", "name another column")
    return rows.select_columns([column])


def _read_rows(task: tuple[Any, str], folder: Path) -> shards.Facts:
    rows, column = task
    summary = SourceSummary()
    values = ((f"row {number}", text) for number, text in enumerate(_values(rows, column)))
    return _store(values, summary, folder)


def _values(rows: Any, column: str) -> Iterator[str | None]:
    for batch in rows.iter(batch_size=100):
        yield from batch[column]


def _read_files(task: tuple[list[tuple[str, str]], formats.Options], folder: Path) -> shards.Facts:
    files, options = task
    summary = SourceSummary()
    forms = {form.name: form for form in formats.FORMATS}

    def texts() -> Iterator[tuple[str, str | None]]:
        for name, form in files:
            file = Path(name)
            if not file.stat().st_size:
                summary.note("empty files", "left out", name)
                continue
            for text in forms[form].read(file, options, summary):
                yield name, text

    return _store(texts(), summary, folder)


def _store(texts: Iterable[tuple[str, str | None]], summary: SourceSummary, folder: Path) -> shards.Facts:
    """Write the texts of a part, each with the place where it is."""
    writer = _Writer(folder)
    lengths: Counter[int] = Counter()
    hashes = array("Q")
    for where, value in texts:
        summary.rows += 1
        text = clean(value, where, summary)
        if text is None:
            continue
        length = len(text)
        summary.documents += 1
        summary.longest = max(summary.longest, length)
        summary.shortest = min(summary.shortest or length, length)
        lengths[length.bit_length()] += 1
        hashes.append(content_hash(text))
        writer.write(text)
    writer.close()
    np.save(folder / _HASHES, np.asarray(hashes, dtype=np.uint64))
    summary.histogram_of = "documents by length in characters"
    if lengths:
        summary.histogram = {str(n): lengths[n] for n in range(min(lengths), max(lengths) + 1)}
    return {"summary": summary.to_json(), "parts": writer.names, "counts": writer.counts}


def clean(value: str | None, where: str, summary: SourceSummary) -> str | None:
    """A text as it is tokenized; None if there is nothing in it."""
    if value is None or not _has_content(value):
        summary.note("rows without text" if value is None else "rows of white space", "left out", where)
        return None
    if "\ufeff" in value:
        summary.note("texts with byte order marks", "these are removed", where)
        value = value.replace("\ufeff", "")
    if "\0" in value:
        summary.note("texts with NUL characters", "these are removed", where)
        value = value.replace("\0", "")
        if not _has_content(value):
            summary.note("rows of white space", "left out", where)
            return None
    if _SURROGATE.search(value):
        summary.note("texts with halves of surrogate pairs", "replaced by U+FFFD", where)
        value = _SURROGATE.sub("\ufffd", value)
    if "\ufffd" in value:
        summary.note("texts with U+FFFD, as after a wrong encoding", "kept", where)
    text, cut = _LONG_WORD.subn(r"\1", value)
    if cut:
        summary.note("words of more than 200 letters", "cut to 200", where, cut)
    return text


def _has_content(text: str) -> bool:
    """Whether a text has more than white space, control characters, and characters without a width."""
    stripped = text.strip()
    return bool(stripped) and not (stripped[0] in _INVISIBLE and not stripped.strip(_INVISIBLE))


def content_hash(text: str) -> int:
    """64 bits of a hash of a text without the white space around it."""
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8).digest(), "little")


class _Writer:
    """Writes texts to Arrow files of at most `_PART` bytes."""

    def __init__(self, folder: Path) -> None:
        import pyarrow

        self._folder, self.names, self.counts = folder, [], []  # type: ignore[var-annotated]
        self._schema = pyarrow.schema([(_COLUMN, pyarrow.large_string())])
        self._writer: Any = None
        self._batch: list[str] = []
        self._batch_size = self._size = 0

    def write(self, text: str) -> None:
        if self._writer is None:
            import pyarrow

            self.names.append(f"texts-{len(self.names):05d}.arrow")
            self.counts.append(0)
            self._writer = pyarrow.ipc.new_stream(str(self._folder / self.names[-1]), self._schema)
            self._size = 0
        self._batch.append(text)
        self.counts[-1] += 1
        self._batch_size += len(text)
        self._size += len(text)
        if self._batch_size > 1_000_000 or len(self._batch) >= 10_000:
            self._flush()
        if self._size >= _PART:
            self.close()

    def _flush(self) -> None:
        import pyarrow

        array = pyarrow.array(self._batch, pyarrow.large_string())
        self._writer.write_batch(pyarrow.record_batch([array], schema=self._schema))
        self._batch, self._batch_size = [], 0

    def close(self) -> None:
        if self._writer is not None:
            if self._batch:
                self._flush()
            self._writer.close()
            self._writer = None
