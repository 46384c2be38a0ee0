"""Tar shards as webdataset writes them: a member ``.txt`` is a document, members ``.json`` and ``.jsonl`` hold rows.

The members of a sample have one name up to the first dot. Where a sample has a ``.txt``, its ``.json`` describes it and is not
read.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from bellwether.trainer.data import tar_end
from bellwether.trainer.data.formats import json_rows
from bellwether.trainer.data.formats.opening import Options, Unreadable, decoded, open_bytes
from bellwether.trainer.data.listing import is_hidden
from bellwether.trainer.data.summary import SourceSummary

_TEXT, _JSON, _LINES = (".txt", ".text"), (".json",), (".jsonl", ".ndjson")


def read(file: Path, options: Options, summary: SourceSummary) -> Iterator[str | None]:
    with open_bytes(file) as stream:
        watched: Any = tar_end.Watched(stream)  # tarfile only reads
        end = 0
        try:
            with tarfile.open(fileobj=watched, mode="r|") as archive:
                sample: dict[str, tuple[str, bytes]] = {}
                before = None
                for member in archive:
                    end = tar_end.after(member)
                    path = PurePosixPath(member.name)
                    if member.issym() or member.islnk():
                        summary.note("links in tar shards", "left out", f"{file}, {member.name}")
                    if not member.isfile():
                        continue
                    if any(is_hidden(part) for part in path.parts if part not in (".", "..")):
                        summary.ignore(file / member.name)
                        continue
                    stem, dot, suffix = path.name.partition(".")
                    suffix, key = (dot + suffix).lower(), path.parent / stem
                    if key != before:
                        yield from _texts(sample, file, options, summary)
                        sample, before = {}, key
                    if suffix not in (*_TEXT, *_JSON, *_LINES):
                        summary.ignore(file / member.name)
                        continue
                    if suffix in sample:
                        what = "members of a tar shard with the name of a later one"
                        summary.note(what, "left out", f"{file}, {sample[suffix][0]}")
                    content = archive.extractfile(member)
                    sample[suffix] = (member.name, content.read() if content is not None else b"")
                yield from _texts(sample, file, options, summary)
            watched.check_end(end, file, summary)
        except tarfile.TarError as error:
            raise Unreadable(file, f"is no complete tar file: {error}") from error


def _texts(
    sample: dict[str, tuple[str, bytes]], file: Path, options: Options, summary: SourceSummary
) -> Iterator[str | None]:
    has_text = any(suffix in _TEXT for suffix in sample)
    for suffix, (name, content) in sample.items():
        if suffix in _JSON and has_text:
            summary.ignore(file / name)
            continue
        where = f"{file}, {name}"
        try:
            text = decoded(content, options.encoding)
        except UnicodeDecodeError as error:
            summary.unreadable(f"{where}: {error}")
            continue
        if suffix in _TEXT:
            yield text
        else:
            parts = text.split("\n") if suffix in _LINES else [text]
            yield from json_rows.texts(_rows(parts, where, summary), options.column, summary, file / name)


def _rows(parts: list[str], where: str, summary: SourceSummary) -> Iterator[tuple[str, Any]]:
    for number, part in enumerate(parts, 1):
        if part.strip():
            try:
                yield f"{where}, line {number}", json.loads(part)
            except (ValueError, RecursionError) as error:
                summary.unreadable(f"{where}, line {number}: is not JSON: {error}")
