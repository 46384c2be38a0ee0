"""The file in which torchrun and `bellwether train` look for the error of a rank."""

from __future__ import annotations

import contextlib
import os


def write(error: Exception) -> bool:
    """Write a rank's error to its file, if its launcher named one; returns whether it could.

    On a full disk no file is left: launchers fail on an empty one.
    """
    from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return True
    try:
        ErrorHandler().record_exception(error)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(os.environ["TORCHELASTIC_ERROR_FILE"])
        return False
    return True
