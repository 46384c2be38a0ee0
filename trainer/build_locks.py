"""DeepSpeed's just-in-time builds: a process killed during one leaves a lock on which all later ones wait for ever."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

_OLD = 1800.0  # seconds; the longest build seen took a minute, and another machine may be at it


def locks() -> Iterator[Path]:
    """The lock files of builds, under way or dead."""
    from torch.utils.cpp_extension import get_default_build_root

    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    yield from (path for depth in ("*/lock", "*/*/lock") for path in folder.glob(depth))


def mend_stale_locks() -> list[str]:
    """Delete locks whose builder is gone; says what was done and what is still being built, a line each."""
    said = []
    for lock in locks():
        try:
            age = time.time() - lock.stat().st_mtime
        except FileNotFoundError:
            continue
        if age > _OLD and not _builders(lock.parent.name):
            lock.unlink(missing_ok=True)
            said.append(f"deleted the lock of a dead build ({age / 60:.0f} minutes old): {lock}")
        else:
            said.append(f"an extension is being built since {age:.0f} s; if nothing moves for minutes, delete {lock}")
    return said


def _builders(extension: str) -> list[int]:
    """Processes of this machine whose command line names the extension."""
    import psutil

    return [
        p.pid for p in psutil.process_iter(["cmdline"]) if any(extension in part for part in p.info["cmdline"] or [])
    ]
