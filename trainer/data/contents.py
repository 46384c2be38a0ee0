"""The files that ``bellwether prepare`` has read, by their content: a run that finds others is refused, and names them.

The listing is stored in the cache for each config that was prepared by the command. It has the size, the time and a hash of each
file, so that a run compares sizes and times alone, and the command notices a file whose content alone has changed. Of more than
`_MOST` files it has the number in each folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bellwether.trainer import run_paths
from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.config.schema.data import DataConfig
from bellwether.trainer.data import cache, warm

log = logging.getLogger(__name__)

_MOST = 200_000  # files that are compared one by one: more are images, whose content training compares
_BLOCK = 1 << 22  # bytes
_NAMED = 3  # files of each kind in a message

Known = dict[str, list[Any]]  # size, time and hash of each file, by its path


def store(configs: Iterable[DataConfig], files: Sequence[Path]) -> None:
    """Remember what the files of some configs, as of the phases of a run, hold, for the command ``bellwether prepare``.

    Raises:
        ConfigError: if the content of a file has changed since it was remembered, but neither its size nor its time: what is
            prepared is still the content from before.
    """
    if not files:
        return
    if len(files) > _MOST:
        _publish(dict.fromkeys(map(_listing, configs)), {"files": {}, "folders": Counter(map(_parent, files))})
        return
    stats = [each.stat() for each in files]
    total = sum(stat.st_size for stat in stats)
    log.info("comparing the content of %s files, %.1f GB", f"{len(files):,}", total / 1e9)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = list(pool.map(content_hash, files))
    found = {
        str(each.absolute()): [stat.st_size, stat.st_mtime_ns, content]
        for each, stat, content in zip(files, stats, hashes, strict=True)
    }
    listings = dict.fromkeys(map(_listing, configs))  # phases that differ in length alone have the same
    for file in listings:
        for name, (size, when, content) in _known(file).items():
            if name in found and found[name][:2] == [size, when] and found[name][2] != content:
                problem = "its content has changed since it was prepared, but neither its size nor its time"
                raise ConfigError("data", name, problem, "touch it, and prepare the data again")
    _publish(listings, {"files": found})


def _publish(listings: Iterable[Path], facts: dict[str, Any]) -> None:
    text = json.dumps({"when": time.strftime("%Y-%m-%d %H:%M"), **facts})
    for file in listings:
        with contextlib.suppress(OSError):  # a cache that others have filled, and may not be written to
            run_paths.publish(file, text)


def check(config: DataConfig) -> Known:
    """Refuse files that were changed or removed since ``bellwether prepare`` read them, if it did; returns the files that it has read.

    Raises:
        ConfigError: naming them, and those that were added, as far as they are found without reading any.
    """
    file = _listing(config)
    known = _known(file)
    changed, gone = [], []
    for name, (size, when, content) in known.items():
        try:
            stat = os.stat(name)
        except FileNotFoundError:
            gone.append(name)
            continue
        if stat.st_size == size and stat.st_mtime_ns != when and content_hash(Path(name)) == content:
            continue  # touched, or copied
        if (stat.st_size, stat.st_mtime_ns) != (size, when):
            changed.append(name)
    if changed or gone:
        raise _other_files(file, config, changed, gone, _added(config, known) if cache.may_build() else [])
    return known


@contextlib.contextmanager
def refusing_others(config: DataConfig, known: Known) -> Iterator[None]:
    """Inside this context a source is refused that has files which ``bellwether prepare`` has not read.

    Args:
        known: the files that it has read, from `check`; empty: it has read none.
    """

    folders = {} if known else _stored(_listing(config)).get("folders", {})

    def see(files: Sequence[Path]) -> None:
        if known and (added := _unknown(files, known)):
            raise _other_files(_listing(config), config, [], [], added)
        if folders and (others := _other_folders(files, folders)):
            raise _other_files(_listing(config), config, others, [], [])

    with cache.watching_files(see) if known or folders else contextlib.nullcontext():
        yield


def _other_folders(files: Sequence[Path], folders: Mapping[str, int]) -> list[str]:
    """The folders of which the number of files has changed."""
    counts = Counter(map(_parent, files))
    base = os.path.join(os.path.commonpath(counts), "") if counts else ""
    others = {name for name in folders if name.startswith(base) and name not in counts}
    suspects = {name for name, count in counts.items() if folders.get(name) != count}
    if suspects:  # links that lead nowhere are not among the known files
        exact = Counter(_parent(file) for file in files if _parent(file) in suspects and file.is_file())
        others |= {name for name in suspects if folders.get(name, 0) != exact[name]}
    return [f"{name}, which had {folders.get(name, 0):,} files" for name in sorted(others)]


def _parent(file: Path) -> str:
    return os.path.dirname(os.path.abspath(file))


def _added(config: DataConfig, known: Known) -> list[str]:
    """Files of the first source that are not known. Nothing is read: it ends where the first entry of the cache is missing."""
    found: list[Path] = []
    with (
        cache.found_only(),
        cache.watching_files(found.extend),
        contextlib.suppress(ConfigError, cache.NotPrepared, OSError),
    ):
        if config.is_local():
            config.prepare()
    return _unknown(found, known)


def _unknown(files: Sequence[Path], known: Known) -> list[str]:
    names = (str(each.absolute()) for each in files)
    return [name for name in names if name not in known and os.path.isfile(name)]


def content_hash(file: Path) -> str:
    """A hash of the content of a file."""
    import xxhash

    found = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _other_files(
    file: Path, config: DataConfig, changed: Sequence[str], gone: Sequence[str], added: Sequence[str]
) -> ConfigError:
    when = json.loads(file.read_text(encoding="utf-8"))["when"]
    kinds = (
        (changed, "was changed", "were changed"),
        (gone, "is gone", "are gone"),
        (added, "was added", "were added"),
    )
    counted = [
        f"{len(names):,} {one if len(names) == 1 else many} ({_some(names)})" for names, one, many in kinds if names
    ]
    problem = f"of its files, since bellwether prepare has read them ({when}), {'; '.join(counted)}"
    return ConfigError("data", config.source, problem, "restore them, or call bellwether prepare again")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _listing(config: DataConfig) -> Path:
    return warm.file_of(config, "listing")


def _known(file: Path) -> Known:
    found: Known = _stored(file).get("files", {})
    return found


def _stored(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def unique(files: Iterable[Path]) -> list[Path]:
    """The files that exist, each once."""
    return [file for file in dict.fromkeys(files) if file.is_file()]
