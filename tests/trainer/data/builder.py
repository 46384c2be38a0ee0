"""The function that processes of `test_cache` run to fill a cache. It imports no torch, so that they start quickly."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from bellwether.trainer import log
from bellwether.trainer.data.cache import prepared


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
