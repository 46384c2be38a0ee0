"""Reads ``data.source``: a built-in dataset, local files, or a hub dataset, as a `datasets.Dataset`."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import builtin, listing
from bellwether.trainer.data.cache import files_fingerprint, local_path
from bellwether.trainer.data.image_folders import SUFFIXES as IMAGE_SUFFIXES
from bellwether.trainer.data.sampling import Integers, permutation
from bellwether.trainer.data.summary import SourceSummary
from bellwether.trainer.data.transient import transient_cause

if TYPE_CHECKING:
    from bellwether.trainer.config.schema.data import DataConfig

_SUFFIXES = {
    "text": (".txt", ".text"),
    "parquet": (".parquet",),
    "imagefolder": IMAGE_SUFFIXES,
    "webdataset": (".tar",),
}
# The seed of the split. It does not depend on the run: see `bellwether.trainer.data.load`.
_HOLD_OUT = 0x686F6C64


@dataclass(frozen=True)
class Source:
    """Rows that have been located but not read.

    Attributes:
        fingerprint: identifies the content; part of the cache keys of everything prepared from it.
        open: reads the rows into a `datasets.Dataset`.
        listing: the files that are read, and those that are not. Not stored with prepared data: an ignored file may come or go.
    """

    fingerprint: dict[str, Any]
    open: Callable[[], Any]
    listing: SourceSummary = field(default_factory=SourceSummary)
    files: tuple[Path, ...] = ()


def locate(config: DataConfig, key: str = "data.source") -> Source:
    """Finds ``data.source``, or the held-out data that ``data.validation`` names.

    Args:
        key: ``data.source`` or ``data.validation``.

    Raises:
        ConfigError: if it does not exist, or its format cannot be determined.
    """
    held_out = key == "data.validation"
    name = config.validation if held_out else config.source
    assert isinstance(name, str)
    form: str = config.format
    built_in = builtin.find(config.kind, config.source) if form == "auto" else None
    if built_in is not None and not held_out:
        return Source(built_in.fingerprint, built_in.rows)
    if form == "hub" or (form == "auto" and built_in is None and not is_path(config.source)):
        # For a hub dataset, `validation` is the name of one of its splits.
        return hub(config, name if held_out else config.split, key)
    found = SourceSummary()
    files = files_of(name, suffixes(form), key, found)
    form = _format(files, name, key) if form == "auto" else form
    # Files of other names are read if nothing else is there: the user named them.
    chosen = any(f.suffix.lower() in _SUFFIXES[form] for f in files)
    matching_files = listing.select(files, _SUFFIXES[form], found) if chosen else files
    found.files_read = len(matching_files)
    if form in ("text", "imagefolder", "webdataset"):
        _check_kind(config, "text" if form == "text" else "images", form, name, key)
    return Source(
        {form: files_fingerprint(matching_files)}, lambda: _read(form, matching_files, config, name, key), found,
        tuple(matching_files),
    )  # fmt: skip


def is_local(config: DataConfig) -> bool:
    """Whether the rows can be read without access to a hub."""
    built_in = config.format == "auto" and builtin.find(config.kind, config.source) is not None
    return built_in or (config.format != "hub" and is_path(config.source))


def split(rows: int, config: DataConfig) -> tuple[Integers, Integers]:
    """The row numbers of the training and of the validation split, both ascending.

    The same rows are held out in every run: a fraction ``data.validation_share`` of them, at least one.

    Raises:
        ConfigError: if one of the splits would be empty.
    """
    share = config.validation_share
    held_out = max(1, round(share * rows)) if share > 0 else 0
    if held_out == 0 or held_out >= rows:
        problem = f"of {rows} rows, {held_out} are held out and {rows - held_out} are left to train on"
        advice = "choose another share, or name held-out data in data.validation"
        if rows < 2:
            advice = "name held-out data in data.validation"
        raise ConfigError("data.validation_share", share, problem, advice)
    order = permutation(_HOLD_OUT, rows).astype("int64")
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def is_path(name: str) -> bool:
    """Whether a source is meant as a local path, whether it exists or not. A hub name is ``name`` or ``owner/name``."""
    known = Path(name).suffix.lower() in sum(_SUFFIXES.values(), ())
    looks_like_hub = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name) is not None
    return known or not looks_like_hub or Path(name).expanduser().exists()


def suffixes(form: str) -> tuple[str, ...]:
    """Of the files of a format; of all formats for ``auto``."""
    return _SUFFIXES[form] if form in _SUFFIXES else sum(_SUFFIXES.values(), ())


def files_of(name: str, known: Sequence[str], key: str, found: SourceSummary) -> list[Path]:
    """The files that ``data.source`` or ``data.validation`` names; of a folder, those with a known suffix.

    Raises:
        ConfigError: if there are none.
    """
    path = local_path(key, name)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = listing.select(list(listing.walk(key, path, found)), known, found)
        problem, advice = "no file in this folder is one of " + " ".join(known), "name another folder, or a glob"
    else:
        files = [f for f in map(Path, glob.glob(str(path), recursive=True)) if f.is_file()]
        problem, advice = "no such file, folder or glob", _nearest(path)
        if path.exists():
            problem, advice = "neither a file nor a folder", "name one of these"
    if not files:
        raise ConfigError(key, name, problem, advice)
    return sorted(files)


def _nearest(path: Path) -> str:
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], 1, 0.5)
    return f"did you mean {path.parent / near[0]}?" if near else "paths are relative to where the run is started"


def _format(files: list[Path], name: str, key: str) -> str:
    found = {form for form, suffixes in _SUFFIXES.items() for f in files if f.suffix.lower() in suffixes}
    if len(found) == 1:
        return found.pop()
    problem = f"holds {' and '.join(sorted(found))} files" if found else f"what is a {files[0].suffix or 'plain'} file?"
    raise ConfigError(key, name, problem, "set data.format, or name the files by a glob such as folder/*.parquet")


def _check_kind(config: DataConfig, kind: str, form: str, name: str, key: str) -> None:
    if config.kind != kind:
        raise ConfigError(key, name, f"is {form}, but data.kind is {config.kind}", "name other data, or set data.kind")


def _read(form: str, files: list[Path], config: DataConfig, name: str, key: str) -> Any:
    from datasets.arrow_writer import SchemaInferenceError

    cache = local_path("data.cache", config.cache)
    try:
        return _load_dataset(cache, form, data_files=[str(f) for f in files], split="train")
    except Exception as error:
        if transient_cause(error):
            raise
        if isinstance(error.__cause__, SchemaInferenceError):
            raise ConfigError(key, name, "has no rows", "name other data") from error
        file, problem = _unreadable(files) or (name, _reason(error))
        advice = "all files must be parquet, with rows and the same columns"
        raise ConfigError(key, name, f"{file} cannot be read: {problem}", advice) from error


def _unreadable(files: list[Path]) -> tuple[Path, str] | None:
    """The first file that cannot be read, and the reason. The errors of `datasets` do not name the file."""
    from pyarrow import parquet

    columns = None
    for file in files:
        try:
            metadata = parquet.read_metadata(file)
        except Exception as error:
            return file, _reason(error)
        found = metadata.schema.to_arrow_schema().names
        columns = columns or found
        if not metadata.num_rows:
            return file, "it has no rows"
        if more := [column for column in found if column not in columns]:
            return file, f"{files[0].name} does not have its columns {', '.join(more)}"
    return None


def hub(config: DataConfig, part: str | None, key: str) -> Source:
    name = config.source if key == "data.source" else str(part)
    cache = local_path("data.cache", config.cache)
    try:
        dataset = _load_dataset(cache, config.source, config.subset, split=part)
    except Exception as error:
        if transient_cause(error):
            raise
        advice = "give a path, or the name of a dataset on the hub; data.subset and data.split choose a part of it"
        raise ConfigError(key, name, f"datasets cannot load it: {_reason(error)}", advice) from error
    return Source({"hub": config.source, "split": part, "digest": dataset._fingerprint}, lambda: dataset)


def _load_dataset(cache: Path, *args: Any, **options: Any) -> Any:
    """`datasets.load_dataset`, with its own cache below ours."""
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(*args, cache_dir=str(cache / "datasets"), **options)


def _reason(error: BaseException) -> str:
    """Type and message of an error's root cause: `datasets` wraps the reason in errors of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
