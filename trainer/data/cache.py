"""Prepared data on disk: built once, by one process, and seen by others whole or not at all.

An entry is a directory named after what it holds and a digest of everything that it was made from. It is built beside
its place and moved there by one rename. A lock that dies with its process makes the others wait for the builder; what
a killed builder left behind is removed by the next. An entry whose files have lost their sizes is built anew.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bellwether.trainer.config.errors import ConfigError

# Up to this size, files are known by their content, beyond it by path, size and modification time.
CONTENT_LIMIT = 2**28
_FOREIGN_LEFTOVER = 24 * 3600  # seconds
_IMPATIENCE = 1.0  # seconds
_BUILDS: ContextVar[bool] = ContextVar("builds", default=True)


class NotPrepared(LookupError):
    """There is no such entry, and none was to be built."""


@contextmanager
def found_only() -> Iterator[None]:
    """Inside, `prepared` builds nothing: it raises `NotPrepared` where it would."""
    token = _BUILDS.set(False)
    try:
        yield
    finally:
        _BUILDS.reset(token)


def digest(key: Any) -> str:
    """32 hexadecimal digits that stand for a JSON-like value."""
    text = json.dumps(key, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def files_fingerprint(files: Sequence[Path]) -> dict[str, Any]:
    """What tells these files from others: names, sizes, and content where they are at most 256 MiB together.

    Larger ones are known by path and modification time: reading them all would take longer than the start of a run
    may, on every rank.
    """
    stats = [f.stat() for f in files]
    if sum(s.st_size for s in stats) > CONTENT_LIMIT:
        rows = [(str(f.absolute()), s.st_size, s.st_mtime_ns) for f, s in zip(files, stats, strict=True)]
        return {"files": len(files), "by": "path, size and time", "digest": digest(rows)}
    content = hashlib.sha256()
    for file, stat in zip(files, stats, strict=True):
        content.update(f"{file.parent.name}/{file.name}\0{stat.st_size}\0".encode("utf-8", "surrogateescape"))
        content.update(file.read_bytes())
    return {"files": len(files), "by": "content", "digest": content.hexdigest()[:32]}


def local_path(key: str, name: str) -> Path:
    """The path that ``key`` of the config names, with ``~`` written out.

    Raises:
        ConfigError: if no file can have this name, or ``~`` is of no user.
    """
    try:
        path = Path(name).expanduser()
        if b"\0" in os.fsencode(path):
            raise ValueError("it holds a NUL byte")
        return path
    except (RuntimeError, ValueError) as error:
        raise ConfigError(key, name, f"is not a path: {error}", "correct it") from error


def say(text: str) -> None:
    """A line about the preparation, on stderr."""
    print(f"data: {text}", file=sys.stderr, flush=True)


def prepared(root: str, name: str, key: dict[str, Any], build: Callable[[Path], None]) -> Path:
    """The directory of an entry, which is built if it is not there or damaged.

    Args:
        root: ``data.cache`` of the config.
        name: kind of the entry, the readable part of its name.
        key: everything that the content depends on; JSON-like. Kept beside the content, in ``key.json``,
            together with the sizes of all ``files``.
        build: fills the empty directory it is given. Called by one process at a time over all that share ``root``.

    Raises:
        ConfigError: if nothing can be written to ``root``.
        NotPrepared: inside `found_only`.
    """
    directory = local_path("data.cache", root)
    final = directory / f"{name}-{digest(key)}"
    if _whole(final):
        return final
    if not _BUILDS.get():
        raise NotPrepared(str(final))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _waited_for(FileLock(directory / f"{final.name}.lock"), final):
            if not _whole(final):
                if final.exists():
                    say(f"{final} is damaged and prepared anew")
                    final.rename(_partial(final))
                _remove_leftovers(final)
                _publish(final, key, build)
    except OSError as error:
        inside = str(error.filename or "").startswith(str(directory))
        if not inside and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(
            "data.cache", root, f"cannot be written to: {error.strerror}", "name a directory with room"
        ) from error
    return final


def _whole(entry: Path) -> bool:
    """Whether an entry is there, and its files as long as they were when it was published."""
    try:
        sizes = json.loads((entry / "key.json").read_text(encoding="utf-8"))["files"]
        return all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, LookupError):
        return False


def _partial(final: Path) -> Path:
    return final.with_name(f"{final.name}.partial-{socket.gethostname()}-{os.getpid()}")


def _waited_for(lock: FileLock, final: Path) -> Any:
    try:
        return lock.acquire(timeout=_IMPATIENCE)
    except Timeout:
        # The other ranks of this process's machine wait for the same.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            say(f"waiting for another process that prepares {final}")
        # Seldom: hundreds of ranks may wait for the same entry of a shared file system.
        return lock.acquire(poll_interval=_IMPATIENCE)


def _publish(final: Path, key: dict[str, Any], build: Callable[[Path], None]) -> None:
    partial = _partial(final)
    partial.mkdir()
    try:
        build(partial)
        files = [path for path in partial.rglob("*") if path.is_file()]
        sizes = {path.relative_to(partial).as_posix(): path.stat().st_size for path in files}
        text = json.dumps({**key, "files": sizes}, indent=1, ensure_ascii=True)
        (partial / "key.json").write_text(text + "\n", encoding="utf-8")
        for path in (*files, partial / "key.json"):
            _flush(path)
        try:
            partial.rename(final)
        except OSError:
            # Where the file system keeps no locks, two may build; the second finds the same content in place.
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _flush(path: Path) -> None:
    # The rename must not reach the disk before the content does.
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove_leftovers(final: Path) -> None:
    """Directories of builders that were killed. We hold the lock, so on this machine none is alive."""
    own = f".partial-{socket.gethostname()}-"
    for path in final.parent.glob(f"{final.name}.partial-*"):
        # On another machine one may be, if the file system does not carry locks between them.
        if own in path.name or time.time() - path.stat().st_mtime > _FOREIGN_LEFTOVER:
            shutil.rmtree(path, ignore_errors=True)
