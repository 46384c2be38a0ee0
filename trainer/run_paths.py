"""Paths in a run directory, and atomic writes of its files. Light imports only: the launcher uses it too."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bellwether.trainer.config import Config, ConfigError

FINISHED = "finished.json"
HEARTBEAT = Path("logs", "heartbeat.json")
DATA = "data.json"
MLLOG = "mllog.txt"
RANK0_LOG = Path("logs", "rank0.log")
_CHECKPOINT = re.compile(r"^step-\d{8}$")
_PARTIAL = ".partial-"


def directory(config: Config) -> Path:
    """The run directory of a config."""
    return Path(config.runs).expanduser() / config.name


def checkpoints(root: Path) -> list[Path]:
    """The published checkpoints, oldest first."""
    return sorted(p for p in root.glob("step-*") if _CHECKPOINT.match(p.name)) if root.is_dir() else []


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context with a temporary path that then atomically replaces ``path``. A failure leaves the old file."""
    # A unique name: a user may write a report at the same time as the run.
    partial = path.with_name(f"{path.name}{_PARTIAL}{socket.gethostname()}-{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def is_partial(path: Path, name: str) -> bool:
    """Whether this is what a killed process has left of its `replacing` of a file of this name."""
    return path.name.startswith(f"{name}{_PARTIAL}")


def apply_umask(file: Path) -> None:
    """Give a file the mode that the user's umask says: safetensors creates its files for the owner alone."""
    # A umask can only be read by setting it. In between, another thread's new file would be private, not public.
    umask = os.umask(0o077)
    os.umask(umask)
    file.chmod(0o666 & ~umask)


def publish(path: Path, text: str) -> None:
    """Atomically replace a file's content by a text, in UTF-8."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def published_json(path: Path, key: str) -> dict[str, Any] | None:
    """The object in a JSON file that was published in a folder of results, or None if there is no such file.

    Args:
        key: that names the folder, for the error.

    Raises:
        ConfigError: if the file holds something else, as that of another program.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        problem = "is no object"
    except ValueError as error:
        problem = str(error)
    advice = "name a new folder, or restore the file"
    raise ConfigError(key, str(path.parent), f"its {path.name} cannot be read: {problem}", advice)


def prune(root: Path, folders: re.Pattern[str], files: re.Pattern[str], keep: int) -> None:
    """Delete our files in all but the newest ``keep`` of the folders that have such a name, and each folder that is empty then.

    Args:
        folders: full names of the folders that count; sorted by name, the oldest comes first.
        files: paths within a folder that are ours; others stay.
    """
    found = sorted(p for p in root.iterdir() if folders.fullmatch(p.name) and p.is_dir()) if root.is_dir() else []
    for folder in found[: len(found) - keep]:
        remove_files(folder, files)


def remove_files(folder: Path, files: re.Pattern[str], only_empty: bool = False) -> None:
    """Delete the files of a folder whose path within it matches, and the folders that are empty then. Errors are ignored."""
    emptied = {folder}
    for path in folder.rglob("*"):
        if files.fullmatch(path.relative_to(folder).as_posix()) and not path.is_dir():
            with contextlib.suppress(OSError):  # another process was faster
                if only_empty and path.stat().st_size:
                    continue
                path.unlink()
                emptied.add(path.parent)
    for path in sorted(emptied, reverse=True):  # what is in a folder before the folder
        with contextlib.suppress(OSError):  # it is not empty
            path.rmdir()
