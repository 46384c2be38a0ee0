"""What the processes import that fill a cache; no torch, so that they start at once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from bellwether.trainer.data.cache import prepared


def build_slowly(root: str, log: str, die: bool = False) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        if die:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1.5)
        (folder / "whole").write_text("whole")
        with open(log, "a") as file:
            file.write("built\n")

    entry = prepared(root, "thing", {"a": 1}, build)
    assert (entry / "whole").read_text() == "whole"
