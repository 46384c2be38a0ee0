"""Locks of DeepSpeed's just-in-time builds: a process killed during a build leaves one on which all later processes wait forever."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

_STALE = 1800.0  # seconds; the longest build seen took a minute, and another machine may be building


def locks() -> Iterator[Path]:
    """The lock files of builds, running or dead."""
    # torch.utils.cpp_extension, which knows this folder, imports setuptools: 0.3 s of a core.
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or os.path.join(cache, "torch_extensions"))
    yield from (path for depth in ("*/lock", "*/*/lock") for path in folder.glob(depth))


def remove_stale() -> list[str]:
    """Delete locks whose builder no longer runs.

    Returns:
        a message for each lock: that it was deleted, or that a build is running.
    """
    messages = []
    for lock in locks():
        try:
            age = time.time() - lock.stat().st_mtime
        except FileNotFoundError:
            continue
        if age > _STALE and not builders(lock.parent.name):
            lock.unlink(missing_ok=True)
            messages.append(f"deleted the lock of a dead build ({age / 60:.0f} minutes old): {lock}")
        else:
            messages.append(
                f"an extension has been building for {age:.0f} s; if the run does not proceed for minutes, delete {lock}"
            )
    return messages


def builders(extension: str) -> list[int]:
    """Ids of the processes on this machine whose command line names the extension. Needs psutil."""
    import psutil

    return [
        p.pid for p in psutil.process_iter(["cmdline"]) if any(extension in part for part in p.info["cmdline"] or [])
    ]
