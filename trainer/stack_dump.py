"""Writes what a hanging process is doing: the Python stacks of its threads, and torch's record of its collectives.

Each dump of a run has a folder, ``logs/stacks/<time>-step-<step>/``, with ``rank-00007.txt`` (faulthandler) and
``rank-00007.collectives.json`` of each rank. With NCCL there is also ``nccl_trace_rank_7``, which torch's own
``torchfrtrace --prefix nccl_trace_rank_ FOLDER`` compares over the ranks.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch._C import _distributed_c10d as c10d

from bellwether.trainer import run_paths
from bellwether.trainer.data.loader import DUMP_SIGNAL, live_workers

FOLDERS = Path("logs", "stacks")
_NAME = re.compile(r"\d{8}-\d{6}-step-\d+")
_FILES = re.compile(r"rank-\d{5}\.txt|rank-\d{5}\.collectives\.json|nccl_trace_rank_\d+|summary\.txt")
_RECORDED = "500"  # collectives of a process that torch remembers
_LIBRARIES = (sysconfig.get_paths()["stdlib"], str(Path(torch.__file__).parent))


def record_collectives() -> None:
    """Let torch record the newest collectives of each process. To be called before the process group is started."""
    if "TORCH_NCCL_TRACE_BUFFER_SIZE" not in os.environ:  # the older name of the same
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", _RECORDED)


def folder(step: int) -> str:
    """The name of the folder of a dump that is decided now."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-step-{step}"


def is_folder(name: object) -> bool:
    """Whether this is a name that `folder` makes: it comes over a socket."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def write(into: Path, rank: int) -> None:
    """Write this process's files into a folder, and have its data workers print their stacks to standard error.

    Raises:
        OSError: if they cannot be written.
    """
    for worker in list(live_workers):
        with contextlib.suppress(OSError, TypeError, ValueError):  # it has not started or has ended
            os.kill(worker.pid, DUMP_SIGNAL)
    into.mkdir(parents=True, exist_ok=True)
    with open(into / f"rank-{rank:05d}.txt", "w") as file:
        faulthandler.dump_traceback(file)
    for name, suffix in (("_dump_nccl_trace_json", f"rank-{rank:05d}.collectives.json"), ("_dump_fr_trace_json", f"rank-{rank:05d}.collectives.json"),
                         ("_dump_nccl_trace", f"nccl_trace_rank_{rank}")):  # fmt: skip
        # Which of them this torch has depends on its version and its build.
        if (dump := getattr(c10d, name, None)) is not None and not (into / suffix).exists():
            with contextlib.suppress(RuntimeError):
                data = dump()
                (into / suffix).write_bytes(data.encode() if isinstance(data, str) else data)


def write_summary(into: Path, reason: str, frames: Mapping[int, str]) -> None:
    """Write ``summary.txt``: the reason, and which ranks are at the same line.

    Args:
        frames: `frame` of the ranks that have answered.

    Raises:
        OSError: if it cannot be written.
    """
    ranks: dict[str, list[int]] = {}
    for rank, frame in sorted(frames.items()):
        ranks.setdefault(frame, []).append(rank)
    lines = [f"{len(at):>6,} ranks at {frame}: {', '.join(map(str, at))}" for frame, at in ranks.items()]
    into.mkdir(parents=True, exist_ok=True)
    (into / "summary.txt").write_text("\n".join([reason, "", *sorted(lines, key=len)]) + "\n")


def in_thread(act: Callable[[], None]) -> threading.Thread:
    """Start to write in a thread: the file system may be what hangs."""

    def run() -> None:
        with contextlib.suppress(OSError):
            act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def frame(thread: int | None = None) -> str:
    """The innermost line of Python that a thread runs outside torch and Python's own library: ``file:line in function``.

    Args:
        thread: as `threading.get_ident`; None: the main thread.
    """
    frame = sys._current_frames().get(thread or threading.main_thread().ident or 0)
    stack = traceback.extract_stack(frame) if frame is not None else []
    own = [entry for entry in stack if not entry.filename.startswith((*_LIBRARIES, "<"))] or stack[-1:]
    return f"{own[-1].filename}:{own[-1].lineno} in {own[-1].name}" if own else ""


def prune(run: Path, keep: int) -> None:
    """Delete the files of all but the newest dumps of a run."""
    run_paths.prune(run / FOLDERS, _NAME, _FILES, keep)


def arm(seconds: float) -> None:
    """Print the stacks of all threads to standard error unless this is called again within some seconds.

    This needs no lock of the interpreter: it works where a thread holds that and no other Python code can run.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):  # standard error is closed or no file
        faulthandler.dump_traceback_later(seconds, file=sys.__stderr__ or sys.stderr)


def disarm() -> None:
    """Take back `arm`."""
    faulthandler.cancel_dump_traceback_later()
