"""Repeats reads that fail for a moment: a file server that restarts, a busy disk, a hub that has too many requests.

What is still failing after ``data.retry`` seconds is an `OSError` with the number `FAILED`: no mistake in the config, and no bug. A
run ends on it with the status `bellwether.trainer.signals.IO`, and a SLURM job starts it again.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from bellwether.trainer.log import EVERY_RANK
from bellwether.trainer.signals import READ_FAILED as FAILED

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 15.0  # seconds; each pause is twice as long as the one before
_MISSING = 3.0  # seconds to wait for a path that does not exist: it is more often a mistake than away
_TRANSIENT = {
    errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EREMOTEIO, errno.ENOTCONN, errno.ECONNRESET,
    errno.ECONNREFUSED, errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.EPIPE,
    errno.ESHUTDOWN, errno.ENOLCK, errno.ENOLINK,
}  # fmt: skip
_OF_NETWORKS = ("httpx", "httpcore", "requests", "urllib3", "aiohttp")
_NETWORK_WORDS = ("Timeout", "Connect", "ReadError", "WriteError", "NetworkError", "Protocol", "ChunkedEncoding")


def transient_cause(error: BaseException, listed: bool = False) -> BaseException | None:
    """The error, or the one that has caused it, that may be gone at the next try; None if there is none.

    Args:
        listed: whether what is read was there before, so that a missing file is one that is away.
    """
    for each in _chain(error):
        if isinstance(each, OSError) and (each.errno in _TRANSIENT or (listed and each.errno == errno.ENOENT)):
            return each
        if isinstance(each, TimeoutError) or _of_network(each):
            return each
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _of_network(error: BaseException) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status in (408, 425, 429) or status >= 500
    name = type(error).__name__
    module = type(error).__module__.partition(".")[0]
    return module in _OF_NETWORKS and any(word in name for word in _NETWORK_WORDS)


def retrying(seconds: float, act: Callable[[], T], listed: bool = False) -> T:
    """What a function returns. It is called again, after growing pauses, while it fails in passing.

    Args:
        seconds: how long; a try that itself took longer begins anew.
        listed: see `transient_cause`.

    Raises:
        OSError: with the number `FAILED`, if it still fails then.
    """
    deadline, pause = 0.0, _FIRST_PAUSE
    while True:
        began = time.monotonic()
        try:
            return act()
        except Exception as error:
            cause = transient_cause(error, listed)
            if cause is None:
                raise
            now = time.monotonic()
            if not deadline or now - began > max(seconds, 1.0):
                deadline, pause = now + seconds, _FIRST_PAUSE
            if now + pause > deadline:
                raise _failed(cause, seconds) from error
            log.warning("%s; tried again in %.1f s (data.retry)", _text(cause), pause, extra=EVERY_RANK)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _failed(cause: BaseException, seconds: float) -> OSError:
    if isinstance(cause, OSError) and cause.errno == FAILED:
        return cause
    name = getattr(cause, "filename", None)
    return OSError(FAILED, f"{_text(cause)}, also after {seconds:g} s of data.retry", name)


def _text(error: BaseException) -> str:
    reason = getattr(error, "strerror", None)
    name = getattr(error, "filename", None)
    if reason:
        return f"{reason}: {name}" if name else str(reason)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def await_path(name: Path, seconds: float) -> None:
    """Wait a little for the folder or file that a path or a glob begins with, where it does not exist."""
    parts = name.parts
    fixed = next((index for index, part in enumerate(parts) if any(c in part for c in "*?[")), len(parts))
    path = Path(*parts[:fixed])
    deadline, pause = time.monotonic() + min(seconds, _MISSING), _FIRST_PAUSE
    said = False
    while not path.exists() and time.monotonic() < deadline:
        if not said:
            log.info("%s does not exist; looking again for %.0f s", path, min(seconds, _MISSING), extra=EVERY_RANK)
            said = True
        time.sleep(pause)
        pause = min(2 * pause, 1.0)
