"""Locks of files between processes, also where the file system has no ``flock``."""

from __future__ import annotations

import fcntl
import tempfile
from pathlib import Path

from filelock import BaseFileLock, FileLock

from bellwether.trainer.run_lock import NO_LOCKS, Busy, Lease


def file_lock(path: Path, blocking: bool = True) -> BaseFileLock:
    """A `filelock.FileLock`, or where the file system has no locks one that expires. The directory must exist."""
    return FileLock(path, blocking=blocking) if _has_flock(path.parent) else _LeaseLock(path, blocking=blocking)


class _LeaseLock(BaseFileLock):
    """filelock's interface to a `Lease`."""

    _lease: Lease

    def _acquire(self) -> None:
        path = Path(self.lock_file)
        self._lease = Lease(path.with_name(f"{path.name}.lease"))
        try:
            self._lease.take()
        except Busy:
            return
        self._context.lock_file_fd = 0  # how filelock knows that it is held

    def _release(self) -> None:
        self._context.lock_file_fd = None
        self._lease.release()


def _has_flock(folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in NO_LOCKS
    return True
