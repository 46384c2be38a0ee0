"""Finds the images that ``data.source`` or ``data.validation`` names: folders, globs, tar shards, or a table."""

from __future__ import annotations

import bisect
import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import builtin, cache, sources
from bellwether.trainer.data.cache import CONTENT_LIMIT, digest, local_path
from bellwether.trainer.data.image_folders import SUFFIXES, ImageFiles, list_files, list_folder
from bellwether.trainer.data.image_shards import ShardImages, list_shards
from bellwether.trainer.data.listing import select, walk
from bellwether.trainer.data.summary import SourceSummary
from bellwether.trainer.data.transient import await_path

if TYPE_CHECKING:
    from bellwether.trainer.data.images import ImageData


@dataclass(frozen=True)
class ImageSource:
    """Labelled images that have been located but not read.

    Attributes:
        fingerprint: identifies the content; part of the cache keys of everything prepared from it.
        base: the folder to which the names of `files` are relative.
        files: images of a folder, or members of tar shards; None for a table.
        table: reads the rows into a `datasets.Dataset`, where there are no `files`.
        describe: names a row of the table in messages.
        listing: what is read and what is not, by file name.
    """

    fingerprint: dict[str, Any]
    base: Path = Path()
    files: ImageFiles | ShardImages | None = None
    table: Callable[[], Any] | None = None
    describe: Callable[[int], str] = "row {}".format
    listing: SourceSummary = field(default_factory=SourceSummary)


def locate(config: ImageData, key: str = "data.source") -> ImageSource:
    """Finds ``data.source``, or the held-out images that ``data.validation`` names.

    Raises:
        ConfigError: if it does not exist, its format cannot be determined, or its layout is not understood.
    """
    name = config.source if key == "data.source" else config.validation
    assert isinstance(name, str)
    form: str = config.format
    is_builtin = form == "auto" and key == "data.source" and builtin.find("images", name) is not None
    if is_builtin or form in ("text", "hub") or not sources.is_local(config):
        return _table(config, key)
    path, found = local_path(key, name), SourceSummary()
    if cache.may_build():  # a look at what is prepared, as for a plan, does not wait
        await_path(path, config.retry)
    if path.is_dir():
        files = list(walk(key, path, found, broken_links=True))
        known = {".tar": "webdataset", ".parquet": "parquet", **dict.fromkeys(SUFFIXES, "imagefolder")}
        forms = {known[file.suffix.lower()] for file in files if file.suffix.lower() in known}
        if form == "auto" and len(forms) > 1:
            problem = f"holds {' and '.join(sorted(forms))} files"
            raise ConfigError(key, name, problem, "set data.format, or name the files by a glob such as folder/*.tar")
        form = forms.pop() if form == "auto" and forms else form
        if form == "imagefolder":
            return _folder(list_folder(path, files, key, found), found, name, key)
    elif form != "parquet":
        files = sources.files_of(name, sources.suffixes(form), key, found)
        suffixes = {file.suffix.lower() for file in files}
        if form == "auto" and ".parquet" not in suffixes:
            form = "imagefolder" if suffixes & set(SUFFIXES) else "webdataset" if suffixes == {".tar"} else form
        if form == "imagefolder":
            return _folder(list_files(files, found), found, name, key)
    if form == "webdataset":
        return _shards(select(files, (".tar",), found), config, found, name, key)
    return _table(config, key)


def _folder(files: ImageFiles, found: SourceSummary, name: str, key: str) -> ImageSource:
    if len(files.classes) < 2:
        problem = f"all images are of one class, {files.classes[0]!r}" if files.classes else "holds no images"
        raise ConfigError(key, name, problem, "put the images of each class in a sub-folder of its own")
    fingerprint = {
        "imagefolder": _fingerprint(files.paths), "layout": digest([files.names, files.labels, files.classes])
    }  # fmt: skip
    found.files_read = len(files.names)
    return ImageSource(fingerprint, files.base, files, listing=found)


def _shards(shards: list[Path], config: ImageData, found: SourceSummary, name: str, key: str) -> ImageSource:
    if not shards:
        raise ConfigError(key, name, "holds no .tar file", "name other data, or set data.format")
    images = list_shards(shards, config.label_column, key)
    if not images.names:
        raise ConfigError(key, name, f"no image in {len(shards)} tar shards", f"images end in {' '.join(SUFFIXES)}")
    fingerprint = {
        "webdataset": _fingerprint([str(shard.absolute()) for shard in shards]),
        "layout": digest([images.names, images.labels]),
    }
    found.add(images.summary)
    found.files_read = len(shards)
    return ImageSource(fingerprint, Path(os.path.commonpath([s.parent for s in shards])), images, listing=found)


def _table(config: ImageData, key: str) -> ImageSource:
    source = sources.locate(config, key)
    describe: Callable[[int], str] = "row {}".format
    if source.files and source.files[0].suffix == ".parquet":
        describe = ParquetRows(source.files)
    return ImageSource(source.fingerprint, table=source.open, describe=describe, listing=source.listing)


class ParquetRows:
    """Names a row of several parquet files that are read one after the other: file, row group, and row in the group."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self._starts: list[tuple[int, Path, int]] | None = None

    def __call__(self, row: int) -> str:
        if self._starts is None:
            self._starts = list(self._groups())
        start, file, group = self._starts[bisect.bisect_right(self._starts, row, key=lambda entry: entry[0]) - 1]
        return f"{file}, row group {group}, row {row - start}"

    def _groups(self) -> Any:
        from pyarrow import parquet

        start = 0
        for file in self.files:
            metadata = parquet.read_metadata(file)
            for group in range(metadata.num_row_groups):
                if metadata.row_group(group).num_rows:
                    yield start, file, group
                start += metadata.row_group(group).num_rows


def _fingerprint(files: Sequence[str]) -> dict[str, Any]:
    """As `cache.files_fingerprint`, for absolute paths, of which some may lead nowhere. There may be millions."""
    cache.record_files(files)
    stats = [_stat(file) for file in files]
    if sum(size for size, _ in stats) > CONTENT_LIMIT:
        rows = [(file, *stat) for file, stat in zip(files, stats, strict=True)]
        return {"files": len(files), "by": "path, size and time", "digest": digest(rows)}
    content = hashlib.sha256()
    for file, (size, _) in zip(files, stats, strict=True):
        content.update(f"{size}\0".encode())
        if size > 0 and os.access(file, os.R_OK):
            content.update(Path(file).read_bytes())
    return {"files": len(files), "by": "content", "digest": content.hexdigest()[:32]}


def _stat(file: str) -> tuple[int, int]:
    try:
        stat = os.stat(file)
    except (FileNotFoundError, PermissionError):
        return -1, 0
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return -1, 0
    return stat.st_size, stat.st_mtime_ns
