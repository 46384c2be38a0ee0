"""The cache of prepared data on disk: each entry is built once, by one process, and published atomically.

An entry is a directory named after its kind and a digest of everything that its content depends on. It is built in a
temporary directory and published by one rename. Other processes wait for the builder on a file lock that is released when
its process dies; the next builder removes what a killed builder has left. An entry whose files do not have the recorded
sizes is rebuilt.

Long work is shared: one process of each machine that asks for the entry does a part of it (`shards`), before one of them builds the
entry from all parts.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, Timeout

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data.transient import transient_cause
from bellwether.trainer.environment_rank import is_local_rank_0
from bellwether.trainer.file_locks import file_lock
from bellwether.trainer.log import EVERY_RANK

log = logging.getLogger(__name__)

# Files up to this total size are identified by their content, larger ones by path, size and modification time.
CONTENT_LIMIT = 2**28
_SAMPLED, _SAMPLE = 64, 1 << 16  # files, and bytes at each of their ends
_LEFTOVER_AGE = 24 * 3600  # seconds until a temporary directory of another machine counts as abandoned
_LOCK_POLL = 1.0  # seconds
PARTS = "parts"  # folder of an unfinished entry whose content is removed when the entry is there
_PRESENT = ".present"  # suffix of the lock that a machine holds while it does its share
_BUILDS: ContextVar[bool] = ContextVar("builds", default=True)


_USED: ContextVar[list[Path] | None] = ContextVar("used", default=None)
_LISTED: ContextVar[Callable[[Sequence[Path]], None] | None] = ContextVar("listed", default=None)


class NotPrepared(LookupError):
    """The entry does not exist, and building was not allowed."""


@contextmanager
def found_only() -> Iterator[None]:
    """Inside this context `prepared` raises `NotPrepared` instead of building an entry."""
    token = _BUILDS.set(False)
    try:
        yield
    finally:
        _BUILDS.reset(token)


@contextmanager
def recording() -> Iterator[list[Path]]:
    """Inside this context the entries that `prepared` returns are added to the list."""
    found: list[Path] = []
    token = _USED.set(found)
    try:
        yield found
    finally:
        _USED.reset(token)


@contextmanager
def watching_files(see: Callable[[Sequence[Path]], None]) -> Iterator[None]:
    """Inside this context a function gets the files of each source when they are listed, before they are read."""
    token = _LISTED.set(see)
    try:
        yield
    finally:
        _LISTED.reset(token)


def record_files(files: Sequence[Path] | Sequence[str]) -> None:
    """Pass the files of a source to the function of `watching_files`."""
    if (see := _LISTED.get()) is not None:
        see([Path(file) for file in files])


def may_build() -> bool:
    """Whether entries may be built: not inside `found_only`."""
    return _BUILDS.get()


def digest(key: Any) -> str:
    """A hash of a JSON-like value, in 32 hexadecimal digits."""
    text = json.dumps(key, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def files_fingerprint(files: Sequence[Path]) -> dict[str, Any]:
    """Identifies files by name, size and content if they have at most 256 MiB together, else by path, size, time and samples.

    It is computed at the start of each run, which leaves no time to read more. The samples are the first and the last bytes of
    some files: a file that was replaced by one of its size, with its time kept, is found there if anywhere.
    """
    record_files(files)
    stats = [f.stat() for f in files]
    if sum(s.st_size for s in stats) > CONTENT_LIMIT:
        rows = [(str(f.absolute()), s.st_size, s.st_mtime_ns) for f, s in zip(files, stats, strict=True)]
        return {"files": len(files), "by": "path, size, time and samples", "digest": digest([rows, _samples(files)])}
    content = hashlib.sha256()
    for file, stat in zip(files, stats, strict=True):
        content.update(f"{file.parent.name}/{file.name}\0{stat.st_size}\0".encode("utf-8", "surrogateescape"))
        content.update(file.read_bytes())
    return {"files": len(files), "by": "content", "digest": content.hexdigest()[:32]}


def _samples(files: Sequence[Path]) -> list[str]:
    """A hash of the first and the last bytes of at most `_SAMPLED` files, evenly chosen."""
    found = []
    for index in range(min(_SAMPLED, len(files))):
        with files[index * len(files) // min(_SAMPLED, len(files))].open("rb") as stream:
            ends = stream.read(_SAMPLE)
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _SAMPLE))
            found.append(hashlib.sha256(ends + stream.read(_SAMPLE)).hexdigest()[:16])
    return found


def local_path(key: str, name: str) -> Path:
    """The path that the config key `key` names, with ``~`` expanded.

    Raises:
        ConfigError: if it is not a valid path, or ``~`` refers to an unknown user.
    """
    try:
        path = Path(name).expanduser()
        if b"\0" in os.fsencode(path):
            raise ValueError("it holds a NUL byte")
        return path
    except (RuntimeError, ValueError) as error:
        raise ConfigError(key, name, f"is not a path: {error}", "correct it") from error


def prepared(
    root: str,
    name: str,
    key: dict[str, Any],
    build: Callable[[Path], None],
    resumable: bool = False,
    shared: Callable[[Path, Path], None] | None = None,
) -> Path:
    """Returns the directory of an entry. The entry is built if it does not exist or is damaged.

    Args:
        root: ``data.cache`` of the config.
        name: kind of the entry, the readable part of its directory's name.
        key: everything that the content depends on; JSON-like. Stored with the content in ``key.json``, together with the
            sizes of all ``files``.
        build: fills the empty directory that it is given. Of all processes that share ``root``, one at a time calls it.
        resumable: whether `build` continues what an earlier call has left in its directory.
        shared: work in this directory that comes before `build`; it gets a second directory for claims and unfinished parts.
            One process of each machine calls it, several at once. What it leaves in `PARTS` is no part of the entry.

    Raises:
        ConfigError: if ``root`` is not writable.
        NotPrepared: inside `found_only`.
    """
    directory = local_path("data.cache", root)
    final = directory / f"{name}-{digest(key)}"
    if (used := _USED.get()) is not None and final not in used:
        used.append(final)
    if _is_intact(final):
        return final
    if not _BUILDS.get():
        raise NotPrepared(str(final))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if shared is not None:
            _build_together(final, key, build, shared)
        else:
            with _locked(final):
                if not _is_intact(final):
                    _clear(final)
                    _publish(final, key, build, resumable)
    except OSError as error:
        if transient_cause(error):
            raise
        is_in_cache = str(error.filename or "").startswith(str(directory))
        if not is_in_cache and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(
            "data.cache", root, f"cannot be written to: {error.strerror}", "name a directory with room"
        ) from error
    return final


def _build_together(
    final: Path, key: dict[str, Any], build: Callable[[Path], None], shared: Callable[[Path, Path], None]
) -> None:
    """Do a share of the work, and publish the entry unless another machine does."""
    unfinished, claims = _unfinished(final), final.with_name(f"{final.name}.claims")
    while not _is_intact(final):
        with _locked(final):  # no process publishes the folder that is made here
            if _is_intact(final):
                return
            _clear(final)
            unfinished.mkdir(exist_ok=True)
            claims.mkdir(exist_ok=True)
        try:
            with _acquire(file_lock(claims / f"{socket.gethostname()}{_PRESENT}"), final):
                shared(unfinished, claims)
            with _locked(final):
                if not _is_intact(final):
                    _publish(final, key, build, True)
        except FileNotFoundError:
            if unfinished.is_dir() and claims.is_dir():
                raise
            # Another machine has published the entry, or given up its part and removed the folder.
        except ConfigError:
            _abandon(unfinished, claims)
            raise
    shutil.rmtree(claims, ignore_errors=True)


def _abandon(unfinished: Path, claims: Path) -> None:
    """Remove what was shared, unless another machine still works on it, which will meet the same error."""
    for each in claims.glob(f"*{_PRESENT}"):
        try:
            file_lock(each, blocking=False).acquire().lock.release()
        except (Timeout, FileNotFoundError):
            return
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(claims, ignore_errors=True)


def _locked(final: Path) -> Any:
    return _acquire(file_lock(final.with_name(f"{final.name}.lock")), final)


def _clear(final: Path) -> None:
    """Make room for an entry that is not there, or damaged. The lock is held."""
    if final.exists():
        log.warning("%s is damaged and is prepared again", final, extra=EVERY_RANK)
        final.rename(_partial(final))
    _remove_leftovers(final)


def _unfinished(final: Path) -> Path:
    return final.with_name(f"{final.name}.unfinished")


def _is_intact(entry: Path) -> bool:
    """Whether an entry exists and its files have the sizes that were recorded when it was published."""
    try:
        sizes = json.loads((entry / "key.json").read_text(encoding="utf-8"))["files"]
        return all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, LookupError):
        return False


def _partial(final: Path) -> Path:
    return final.with_name(f"{final.name}.partial-{socket.gethostname()}-{os.getpid()}")


def _acquire(lock: BaseFileLock, final: Path) -> Any:
    try:
        return lock.acquire(timeout=_LOCK_POLL)
    except Timeout:
        # The other ranks on this machine wait for the same lock.
        if is_local_rank_0():
            log.info("waiting for another process that prepares %s", final, extra=EVERY_RANK)
        # Poll slowly: hundreds of ranks may wait for the same lock on a shared file system.
        return lock.acquire(poll_interval=_LOCK_POLL)


def _publish(final: Path, key: dict[str, Any], build: Callable[[Path], None], resumable: bool) -> None:
    partial = _unfinished(final) if resumable else _partial(final)
    partial.mkdir(exist_ok=resumable)
    try:
        build(partial)
        files = [path for path in partial.rglob("*") if path.is_file() and path.relative_to(partial).parts[0] != PARTS]
        sizes = {path.relative_to(partial).as_posix(): path.stat().st_size for path in files}
        text = json.dumps({**key, "files": sizes}, indent=1, ensure_ascii=True)
        (partial / "key.json").write_text(text + "\n", encoding="utf-8")
        for path in (*files, partial / "key.json"):
            _flush(path)
        try:
            partial.rename(final)
        except OSError:
            # On a file system without locks two processes may build; the second finds the same content published.
            if not final.is_dir():
                raise
            shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(final / PARTS, ignore_errors=True)
    except ConfigError:  # with other data or another config it is another entry
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        if not resumable:
            shutil.rmtree(partial, ignore_errors=True)


def _flush(path: Path) -> None:
    # The content must reach the disk before the rename does.
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove_leftovers(final: Path) -> None:
    """Removes temporary directories of killed builders. The lock is held, so no builder on this machine is alive."""
    own_prefix = f".partial-{socket.gethostname()}-"
    for path in final.parent.glob(f"{final.name}.partial-*"):
        # A builder on another machine may be alive if the file system does not share locks between machines.
        if own_prefix in path.name or time.time() - path.stat().st_mtime > _LEFTOVER_AGE:
            shutil.rmtree(path, ignore_errors=True)
