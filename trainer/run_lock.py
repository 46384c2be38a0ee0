"""The lock of a run directory: one process group trains in it at a time. Light imports only.

``flock`` is held by the kernel, and ends with its process. Where the file system has none (Lustre without ``-o flock``, some FUSE
file systems), a lease takes its place: a file that its owner touches, and that expires when it is not touched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import IO

from bellwether.trainer import signals

log = logging.getLogger(__name__)

FLOCK, LEASE = ".lock", ".lease"
RENEW_SECONDS = 20.0
EXPIRE_SECONDS = 180.0  # NFS clients may see times that are a minute old
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


class Busy(Exception):
    """Another process holds the lock; the message says which, as far as it is known."""


class RunLock:
    """A lock that is held until `close`."""

    def __init__(self, file: IO[str] | None = None, lease: Lease | None = None) -> None:
        self._file, self._lease = file, lease

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._lease is not None:
            self._lease.release()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def acquire(run: Path) -> RunLock:
    """Lock a run directory, which must exist.

    Raises:
        Busy: if another process holds the lock.
        OSError: if the directory cannot be written.
    """
    lease = Lease(run / LEASE)
    if lease.is_held():  # also by a process on a machine that has no flock here
        raise Busy(lease.holder())
    file = open(run / FLOCK, "a+")  # noqa: SIM115  (held until `close`)
    try:
        _flock(file)
    except BlockingIOError:
        file.seek(0)
        with file:
            raise Busy(file.read().strip()) from None
    except OSError as error:
        file.close()
        if error.errno not in NO_LOCKS:
            raise
        lease.take()
        return RunLock(lease=lease)
    file.truncate(0)
    file.write(_owner() + "\n")
    file.flush()
    return RunLock(file)


def holder(run: Path) -> str | None:
    """The process that holds the lock of a run directory; empty if it is not known which, None if there is none."""
    if not run.is_dir():
        return None
    try:
        if Lease(run / LEASE).is_held():
            return Lease(run / LEASE).holder()
        with open(run / FLOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return (run / FLOCK).read_text().strip()
    except OSError:
        pass  # no such file, or no locks
    return None


def _flock(file: IO[str]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(0.5)  # a look of `holder`, which takes a moment
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def job_of(owner: str) -> str:
    """The SLURM job of a lock's holder; empty where there is none.

    >>> job_of("process 12 on node1, job 34")
    '34'
    """
    return owner.rpartition(", job ")[2] if ", job " in owner else ""


def _owner() -> str:
    job = f"job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    return ", ".join(filter(None, [f"process {os.getpid()} on {socket.gethostname()}", job]))


class Lease:
    """A file that exists while a process trains, or does other work that one alone does, and whose time of change its owner renews.

    Its age is measured with the file system's own clock, against a file that is touched at the same moment: the clocks of the nodes
    may differ.

    Args:
        exits: whether this process ends when another one has taken the lease over, as after this one was suspended for long.
    """

    def __init__(self, file: Path, exits: bool = True) -> None:
        self.file, self._exits = file, exits
        self._token = uuid.uuid4().hex
        self._released = threading.Event()

    def take(self) -> None:
        """Create the file, and renew it until `release`.

        Raises:
            Busy: if another process has it.
        """
        while not self._create():
            seen = self._read()
            if self.is_held():
                raise Busy(self.holder())
            if self._replace(seen):
                break
        threading.Thread(target=self._renew_loop, daemon=True).start()

    def release(self) -> None:
        self._released.set()
        with contextlib.suppress(OSError):
            if self._token in self._read():
                self.file.unlink()

    def is_held(self) -> bool:
        """Whether a process has the lease, and has renewed it in time."""
        try:
            with open(self.file) as file:  # opening it makes NFS ask the server
                owner, renewed = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return False
        return not _has_ended(owner) and self._now() - renewed < EXPIRE_SECONDS

    def holder(self) -> str:
        return self._read().partition("\n")[0]

    def _create(self) -> bool:
        # A complete file appears in one step; O_EXCL would show an empty one for a moment.
        own = self._own_file()
        try:
            os.link(own, self.file)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, *NO_LOCKS):  # no hard links here
                raise
            return _create_exclusively(self.file, own.read_text())
        finally:
            own.unlink(missing_ok=True)
        return True

    def _replace(self, seen: str) -> bool:
        """Replace an expired lease of this content. Whoever creates the guard does it, and looks again first."""
        guard = self.file.with_name(f"{self.file.name}.guard-{seen.split()[-1] if seen.split() else 'empty'}")
        if not _create_exclusively(guard, _owner()):
            with contextlib.suppress(FileNotFoundError):
                if self._now() - guard.stat().st_mtime > EXPIRE_SECONDS:
                    guard.unlink()  # its owner died within these few lines
            time.sleep(0.01)
            return False
        try:
            if self._read() != seen or self.is_held():
                return False
            self._own_file().replace(self.file)
            return True
        finally:
            guard.unlink(missing_ok=True)

    def _own_file(self) -> Path:
        own = self.file.with_name(f"{self.file.name}.{self._token}")
        own.write_text(f"{_owner()}\n{self._token}\n")
        return own

    def _read(self) -> str:
        with contextlib.suppress(OSError):
            return self.file.read_text()
        return ""

    def _now(self) -> float:
        """The file system's time."""
        probe = self.file.with_name(f"{self.file.name}.now-{self._token}")
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _renew_loop(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            found = self._read()
            if self._released.is_set() or (found and self._token not in found and not self._exits):
                return
            if found and self._token not in found:
                # This process was suspended for longer than the lease lasts, and another one trains now.
                log.error("exiting: %s has taken over %s", found.partition("\n")[0], self.file)
                os._exit(signals.LOST)
            with contextlib.suppress(OSError):
                os.utime(self.file)


def _create_exclusively(file: Path, text: str) -> bool:
    try:
        with open(file, "x") as stream:
            stream.write(text)
    except FileExistsError:
        return False
    return True


def _has_ended(owner: str) -> bool:
    """Whether the owner was a process of this machine that is gone."""
    words = owner.partition("\n")[0].replace(",", "").split()
    if len(words) < 4 or words[3] != socket.gethostname() or not words[1].isdigit():
        return False
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
