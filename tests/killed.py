"""A function killed at each of its writes in turn, as by ``kill -9``, to see what the next attempt makes of what is left."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

_KILLED = 9


def at_each_write(folder: Path, function: Callable[[], object]) -> Iterator[str]:
    """Run a function in a forked process that ends at its first, second, ... change below a folder, until one run is complete.

    Yields:
        what it was about to do when it was killed. The caller puts the folder back as it was before the next run.
    """
    for number in count(1):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            _run(function, folder, number, write)
        os.close(write)
        with open(read) as pipe:
            event = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            assert number > 1, "it wrote nothing, or not below this folder"
            return
        assert status == _KILLED, f"failed before its write number {number}"
        yield event


def _run(function: Callable[[], object], folder: Path, number: int, report: int) -> None:
    """Body of the process; does not return."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if not _writes(event, arguments) or not str(arguments[0]).startswith(str(folder)):
            return
        seen += 1
        if seen == number:
            os.write(report, f"{event} {Path(arguments[0]).relative_to(folder)}".encode())
            os._exit(_KILLED)

    status = 1
    try:
        sys.addaudithook(hook)
        function()
        status = 0
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(status)


def _writes(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")
