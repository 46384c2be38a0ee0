"""A time limit for calls that may hang, as on a dead file system or name server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PROBE_SECONDS = 5.0  # for one access to a file system or name server; a longer one is reported as a problem


def run_with_timeout(seconds: float, function: Callable[[], T]) -> T:
    """Call a function in a thread; return its result or raise its exception.

    Raises:
        TimeoutError: if it takes longer. The thread is abandoned, as a hanging system call cannot be interrupted.
    """
    outcome: list[tuple[T | None, Exception | None]] = []

    def run() -> None:
        try:
            outcome.append((function(), None))
        except Exception as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer in {seconds:.0f} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
