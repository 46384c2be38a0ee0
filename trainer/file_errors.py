"""Errors that a file system reports: a full disk is no bug of Bellwether, and is reported in a line instead of a traceback."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bellwether.trainer import signals

# A path that a user gave, and that cannot be read or written there.
_OF_PATHS = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)

# A disk that is full, over quota, read-only, broken or gone, and a file that is too large for it.
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG)


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Name the file in errors of the operating system, also in those that safetensors reports as errors of its own.

    Raises:
        OSError: with number, reason and file.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(file)) from None
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(file)) from None


def explain(error: BaseException, continues: str = "resumes from the newest checkpoint") -> str | None:
    """What a disk has reported, or what is wrong with a path, and what to do; None for other errors.

    Args:
        continues: what the same command does where the disk was full: it "...".
    """
    if isinstance(error, OSError) and error.errno == signals.READ_FAILED:
        return f"the data cannot be read: {error.strerror}; the same command tries again, from the newest checkpoint if there is one"
    if isinstance(error, OSError) and error.errno in _OF_PATHS and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check what is there and its permissions, or give another path"
    if not isinstance(error, OSError) or error.errno not in _OF_DISKS:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; once the disk can be written, the same command {continues}"
