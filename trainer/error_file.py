"""The file in which torchrun and `bellwether train` look for the error of a rank."""

from __future__ import annotations

import contextlib
import json
import os
import time


def write(error: Exception, text: str | None = None) -> bool:
    """Write a rank's error to its file, if its launcher named one; returns whether it could.

    On a full disk no file is left: launchers fail on an empty one.

    Args:
        text: instead of the traceback.
    """
    from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return True
    try:
        if text is None:
            ErrorHandler().record_exception(error)
        else:  # in torch's format
            details = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}
            with open(os.environ["TORCHELASTIC_ERROR_FILE"], "w") as file:
                json.dump({"message": details}, file)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(os.environ["TORCHELASTIC_ERROR_FILE"])
        return False
    return True
