"""``logs/heartbeat.json``: what every rank was doing a few seconds ago, for `bellwether status` and the requeue decision."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bellwether.trainer import run_paths
from bellwether.trainer.arrival import Beat, place

_RANKS = 16  # those furthest behind


class HeartbeatFile:
    """Writes the file in a separate thread: a hanging file system must not stop the beats.

    Args:
        content: called for each write.
    """

    def __init__(self, path: Path, content: Callable[[], dict[str, Any]]) -> None:
        self._path, self._content = path, content
        self._ended: str | None = None
        self._reason: str | None = None
        self._requested, self._written = threading.Event(), threading.Event()
        threading.Thread(target=self._loop, daemon=True).start()

    def request(self) -> None:
        """Request a write."""
        self._requested.set()

    def write(self, ended: str | None, wait: float, reason: str | None = None) -> None:
        """Request a write, the last one with ``ended``, and wait at most these seconds for it."""
        if self._ended is not None:
            return
        self._reason = reason
        self._ended = ended
        self._written.clear()
        self._requested.set()
        self._written.wait(wait)

    def _loop(self) -> None:
        written_step = 0
        while True:
            self._requested.wait()
            self._requested.clear()
            ended, content = self._ended, self._content()
            step = content["step"]
            # How far a step count in this file may lag behind: a killed process cannot write its last one.
            content |= {"time": round(time.time(), 3), "steps": step - written_step, "ended": ended}
            if self._reason is not None:
                content["reason"] = self._reason
            written_step = step
            with contextlib.suppress(OSError):  # a full disk is reported by the checkpoint or the metrics
                run_paths.publish(self._path, json.dumps(content, indent=1))
            if ended == self._ended:
                self._written.set()
            if ended is not None:
                return


def furthest_behind(beats: Mapping[int, Beat], silent: Mapping[int, float]) -> list[dict[str, Any]]:
    """The ranks at the lowest place, those that have been silent longest first.

    Args:
        silent: seconds since the last beat of each rank.
    """
    ranks = sorted(beats, key=lambda rank: (place(beats[rank]), -silent[rank]))
    return [
        {"rank": rank, **{k: v for k, v in beats[rank].items() if k != "n"}, "silent_s": round(silent[rank], 1)}
        for rank in ranks[:_RANKS]
    ]
