"""What processes of tests run to fill a cache. It imports no torch, so that they start quickly."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

from bellwether.trainer import log, run_lock
from bellwether.trainer.data import corpus, shards, text_sources
from bellwether.trainer.data.cache import prepared
from bellwether.trainer.data.text import TextData


def build_slowly(scratch: str, processes: int = 1, die: bool = False) -> None:
    """Ask for one cache entry below `scratch`, and build it if nobody else does.

    Args:
        processes: number of processes that ask; the builder waits until all of them do.
        die: whether the builder kills itself half way.
    """
    started, builds = Path(scratch, "started"), Path(scratch, "builds")

    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        if die:
            os.kill(os.getpid(), signal.SIGKILL)
        while len(list(started.iterdir())) < processes:
            time.sleep(0.05)
        time.sleep(1.5)
        (folder / "whole").write_text("whole")
        with builds.open("a") as file:
            file.write("built\n")

    log.setup()
    started.mkdir(exist_ok=True)
    (started / str(os.getpid())).touch()
    entry = prepared(str(Path(scratch, "cache")), "thing", {"a": 1}, build)
    assert (entry / "whole").read_text() == "whole"


def read_as(machine: str, machines: int, source: str, cache: str, started: str, dies_at: int = 0) -> None:
    """Read a text as a machine of this name does, in parts of two kilobytes, each of which takes 0.1 s.

    Args:
        machines: how many are waited for in the folder `started` before any part is read.
        dies_at: number of the part in which the process kills itself; 0: in none.
    """
    socket.gethostname = lambda: machine
    run_lock.EXPIRE_SECONDS, run_lock.RENEW_SECONDS = 1.0, 0.2
    corpus._PART = 2000
    log.setup()
    read, parts = corpus._read_files, 0

    def slowly(task: tuple[list[tuple[str, str]], corpus.formats.Options], folder: Path) -> shards.Facts:
        nonlocal parts
        parts += 1
        Path(started, machine).touch()
        while len(list(Path(started).iterdir())) < machines:
            time.sleep(0.02)
        time.sleep(0.1)
        if parts == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(task, folder)

    corpus._read_files = slowly
    config = TextData(kind="text", source=source, cache=cache)
    corpus.load(config, text_sources.locate(config, "data.source", source))
