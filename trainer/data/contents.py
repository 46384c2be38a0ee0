"""The files that ``bellwether prepare`` has read, by their content: a run that finds one changed is refused, and names it.

The listing is stored in the cache for each config that was prepared by the command. It has the size, the time and a hash of each
file, so that a run compares sizes and times alone, and the command notices a file whose content alone has changed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bellwether.trainer import run_paths
from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.config.schema.data import DataConfig
from bellwether.trainer.data import warm

log = logging.getLogger(__name__)

_MOST = 200_000  # files: more are images, which training compares one by one
_BLOCK = 1 << 22  # bytes


def store(configs: Iterable[DataConfig], files: Sequence[Path]) -> None:
    """Remember what the files of some configs, as of the phases of a run, hold, for the command ``bellwether prepare``.

    Raises:
        ConfigError: if the content of a file has changed since it was remembered, but neither its size nor its time: what is
            prepared is still the content from before.
    """
    if not files or len(files) > _MOST:
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
    text = json.dumps({"when": time.strftime("%Y-%m-%d %H:%M"), "files": found})
    for file in dict.fromkeys(map(_listing, configs)):  # phases that differ in length alone have the same
        for name, (size, when, content) in _known(file).items():
            if name in found and found[name][:2] == [size, when] and found[name][2] != content:
                problem = "its content has changed since it was prepared, but neither its size nor its time"
                raise ConfigError("data", name, problem, "touch it, and prepare the data again")
        with contextlib.suppress(OSError):  # a cache that others have filled, and may not be written to
            run_paths.publish(file, text)


def check(config: DataConfig) -> None:
    """Refuse files that have changed since ``bellwether prepare`` read them, if it did.

    Raises:
        ConfigError: naming the first.
    """
    file = _listing(config)
    for name, (size, when, content) in _known(file).items():
        try:
            stat = os.stat(name)
        except FileNotFoundError:
            raise _changed(file, name, "is gone") from None
        if stat.st_size == size and stat.st_mtime_ns != when and content_hash(Path(name)) == content:
            continue  # touched, or copied
        if (stat.st_size, stat.st_mtime_ns) != (size, when):
            raise _changed(file, name, "was changed")


def content_hash(file: Path) -> str:
    """A hash of the content of a file."""
    import xxhash

    found = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _changed(file: Path, name: str, what: str) -> ConfigError:
    when = json.loads(file.read_text(encoding="utf-8"))["when"]
    problem = f"{what} after bellwether prepare had read it ({when})"
    return ConfigError("data", name, problem, "restore it, or call bellwether prepare again")


def _listing(config: DataConfig) -> Path:
    return warm.file_of(config, "listing")


def _known(file: Path) -> dict[str, list[Any]]:
    try:
        found: dict[str, list[Any]] = json.loads(file.read_text(encoding="utf-8"))["files"]
    except (FileNotFoundError, ValueError, LookupError):
        return {}
    return found


def unique(files: Iterable[Path]) -> list[Path]:
    """The files that exist, each once."""
    return [file for file in dict.fromkeys(files) if file.is_file()]
