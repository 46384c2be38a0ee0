"""Copies what rank 0 prints to ``logs/rank0.log`` in the run directory, where `bellwether logs` reads it.

The terminal shows the same as without the copy. Of progress bars, which redraw one line, the file has nothing; `write` adds
plain lines instead. Output of C++ code, which does not go through ``sys.stderr``, is not copied.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from bellwether.trainer import run_paths
from bellwether.trainer.config import ConfigError, ConfigErrors

KEEP = "BELLWETHER_KEEP_OUTPUT"  # set to 0 where the launcher keeps rank 0's output itself, as the sbatch scripts do

_open: list[_LogFile] = []  # the file that `write` appends to, if any


def write(text: str) -> None:
    """Write a line to the log only, not to the terminal. Does nothing while no log is kept."""
    for log in _open:
        log.write_line(text)


@contextlib.contextmanager
def keep(run: Path) -> Iterator[None]:
    """Append a copy of standard output and standard error to the run's log, and an exception's traceback.

    Args:
        run: the run directory, with ``logs/`` in it.
    """
    if os.environ.get(KEEP) == "0":
        yield
        return
    streams = sys.stdout, sys.stderr
    log = _LogFile(run / run_paths.RANK0_LOG)
    log.write_line(f"--- {time.strftime('%F %T')} process {os.getpid()} on {socket.gethostname()}")
    _open.append(log)
    sys.stdout, sys.stderr = (cast(TextIO, _Tee(stream, log)) for stream in streams)
    try:
        yield
    except (ConfigError, ConfigErrors) as error:
        log.write_line("\n".join(f"bellwether: {line}" for line in str(error).splitlines()))
        raise
    except Exception:
        log.write_line(traceback.format_exc().rstrip())
        raise
    finally:
        sys.stdout, sys.stderr = streams
        _open.remove(log)
        log.close()


class _LogFile:
    """A file to append lines to. A full disk is no reason to end the training: errors of writing are ignored."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  (closed by `close`)

    def write_line(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._file.write(f"{line}\n".encode(errors="backslashreplace"))

    def close(self) -> None:
        self._file.close()


class _Tee:
    """A text stream that copies complete lines to a log, without progress bars."""

    def __init__(self, stream: TextIO, log: _LogFile) -> None:
        self._stream, self._log = stream, log
        self._line = ""
        self._has_bar = False  # whether the last text on the line is a progress bar

    def write(self, text: str) -> int:
        count = self._stream.write(text)
        # A bar is redrawn, and erased before other text, by writes that begin with \r.
        if text.startswith("\r"):
            self._line, self._has_bar = "", True
        elif self._has_bar and text == "\n":  # after the last state of a bar
            self._has_bar = False
        elif text:
            self._has_bar = False
            *lines, self._line = (self._line + text).split("\n")
            for line in lines:
                self._log.write_line(line)
        return count

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
