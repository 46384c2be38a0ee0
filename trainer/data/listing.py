"""Lists the files of a source: hidden ones are left out, links to folders are followed, and what is not read is counted."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data.summary import SourceSummary

# Beside names that begin with a dot: what archives, file managers and network storage leave in folders.
_HIDDEN = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "thumbs.db", "desktop.ini")


def is_hidden(name: str) -> bool:
    """Whether a program left a file or folder of this name there, so that it is none of the data."""
    return name.startswith(".") or name.lower() in _HIDDEN


def walk(key: str, folder: Path, summary: SourceSummary, broken_links: bool = False) -> Iterator[Path]:
    """All files below a folder, sorted by name within each folder. Hidden files and folders are left out and counted.

    Args:
        key: the config key that names the folder, for errors.
        broken_links: yield links that lead nowhere; else they are left out and counted.

    Raises:
        ConfigError: if a link leads to a folder around it, or a folder cannot be read.
    """
    yield from _walk(key, folder, summary, (_identity(folder),), broken_links)


def _walk(
    key: str, folder: Path, summary: SourceSummary, around: tuple[tuple[int, int], ...], broken_links: bool
) -> Iterator[Path]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except PermissionError as error:
        raise ConfigError(key, str(folder), "this folder may not be read", "correct its permissions") from error
    for entry in entries:
        if is_dir(entry):
            path = Path(entry.path)
            if is_hidden(entry.name):
                summary.note("hidden folders", "left out", entry.path)
                continue
            identity = _identity(path)
            if identity in around:
                problem = f"{path} is a link to a folder around it ({path.resolve()})"
                raise ConfigError(key, str(folder), problem, "remove the link")
            yield from _walk(key, path, summary, (*around, identity), broken_links)
        elif is_hidden(entry.name):
            summary.ignore(Path(entry.path))
        elif _leads_to_file(entry) or (broken_links and entry.is_symlink()):
            yield Path(entry.path)
        else:
            what = "broken links" if entry.is_symlink() else "special files"
            summary.note(what, "left out", entry.path)


def is_dir(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one; not for a link that leads to itself."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def _leads_to_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def select(files: Collection[Path], suffixes: Collection[str], summary: SourceSummary) -> list[Path]:
    """The files that have one of the suffixes; the others are counted as ignored."""
    chosen = []
    for file in files:
        if file.suffix.lower() in suffixes:
            chosen.append(file)
        else:
            summary.ignore(file)
    return chosen
