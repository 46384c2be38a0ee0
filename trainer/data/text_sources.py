"""Finds the text that ``data.source`` or ``data.validation`` names: files of any format in `formats`, or rows of a hub or built in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import builtin, cache, formats, listing, sources
from bellwether.trainer.data.cache import files_fingerprint, local_path
from bellwether.trainer.data.summary import SourceSummary
from bellwether.trainer.data.transient import await_path

if TYPE_CHECKING:
    from bellwether.trainer.data.plain_text import PlainText
    from bellwether.trainer.data.tokenized import TokenizedData


@dataclass(frozen=True)
class TextSource:
    """Texts that have been located but not read.

    Attributes:
        key, name: the config key that names it, and its value.
        fingerprint: identifies the content; part of the cache keys of everything prepared from it.
        files: with the format of each; empty for rows.
        rows: reads the rows into a `datasets.Dataset`, where there are no files.
        listing: the files that are read, and those that are not.
    """

    key: str
    name: str
    fingerprint: dict[str, Any]
    files: tuple[tuple[Path, formats.TextFormat], ...] = ()
    rows: Callable[[], Any] | None = None
    listing: SourceSummary = field(default_factory=SourceSummary)

    def unreadable(self, error: formats.Unreadable) -> ConfigError:
        """The error of one of its files as one of the key."""
        return ConfigError(self.key, self.name, f"{error.file} cannot be read: {error.problem}", error.advice)


def locate(config: PlainText | TokenizedData, key: str, name: str) -> TextSource:
    """Finds the text that a key names.

    Args:
        key: ``data.source``, or one of held-out data.
        name: its value.

    Raises:
        ConfigError: if it does not exist, or is no text.
    """
    held_out = key != "data.source"
    of_builtin = builtin.find(config.kind, config.source) if config.format == "auto" else None
    if of_builtin is not None and not held_out:
        return TextSource(key, name, of_builtin.fingerprint, rows=of_builtin.rows)
    if config.format == "hub" or (config.format == "auto" and of_builtin is None and not _is_path(config.source)):
        # For a hub dataset, held-out data is the name of one of its splits.
        source = sources.hub(config, name if held_out else config.split, key)
        return TextSource(key, name, source.fingerprint, rows=source.open)
    if cache.may_build():  # a look at what is prepared, as for a plan, does not wait
        await_path(local_path(key, name), config.retry)
    found = SourceSummary()
    files = _files(config, key, name, found)
    found.files_read = len(files)
    return TextSource(key, name, {"text": files_fingerprint([file for file, _ in files])}, tuple(files), None, found)


def is_local(config: PlainText | TokenizedData) -> bool:
    """Whether the text can be read without access to a hub."""
    built_in = config.format == "auto" and builtin.find(config.kind, config.source) is not None
    return built_in or (config.format != "hub" and _is_path(config.source))


def _is_path(name: str) -> bool:
    return formats.of(Path(name)) is not None or sources.is_path(name)


def _files(
    config: PlainText | TokenizedData, key: str, name: str, found: SourceSummary
) -> list[tuple[Path, formats.TextFormat]]:
    """The files to read, each with its format. All others are counted as ignored."""
    known = formats.known_suffixes()
    files = sources.files_of(name, (*known, *sources.IMAGE_SUFFIXES), key, found)
    stated = next((form for form in formats.FORMATS if form.name == config.format), None)
    if stated is not None:
        chosen = [(file, stated) for file in files if formats.of(file) == stated]
        # Files of other names are read if nothing else is there: the user named them.
        chosen = chosen or [(file, stated) for file in files if formats.of(file) is None]
    else:
        chosen = [(file, form) for file in files if (form := formats.of(file)) is not None]
    for file in set(files) - {file for file, _ in chosen}:
        found.ignore(file)
    if chosen:
        return chosen
    if config.format == "imagefolder" or listing.select(files, sources.IMAGE_SUFFIXES, SourceSummary()):
        raise ConfigError(
            key, name, f"is imagefolder, but data.kind is {config.kind}", "name other data, or set data.kind"
        )
    problem = f"what is a {files[0].suffix or 'plain'} file?"
    raise ConfigError(key, name, problem, f"set data.format, or name files that end in {' '.join(known)}")
