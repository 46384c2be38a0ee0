"""Which of several machines makes which shard: each claims one by a lease before it begins (`bellwether.trainer.run_lock.Lease`).

The lease of a process that has died expires, and the shard is free again. Leases need no locks of the file system.
"""

from __future__ import annotations

import os
import socket
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bellwether.trainer.run_lock import Busy, Lease

_LOOK = 2.0  # seconds between two looks at what is done, and whether the leases of others have expired
_SUFFIX = ".claim"
_ASKED = 100  # leases of others whose holders are read for a message


class Claims:
    """The shards that are missing, and those of them that this process makes.

    Args:
        shards: directories that are there when they are complete, all in one folder.
        folder: where the leases are.

    Attributes:
        missing: numbers of the shards that are not there, in the order in which they are taken.
        made: how many this process has finished.
    """

    def __init__(self, shards: Sequence[Path], folder: Path) -> None:
        self.shards = list(shards)
        self.missing = list(range(len(self.shards)))
        self.made = 0
        self._folder = folder
        self._own: dict[int, Lease] = {}
        self._claimed: set[int] = set()  # by others
        self._look()

    def begin_anywhere(self) -> None:
        """Take shards from a place on that depends on the process: machines that start at once ask for other ones."""
        if self.missing:
            place = zlib.crc32(f"{socket.gethostname()} {os.getpid()}".encode()) % len(self.missing)
            self.missing = self.missing[place:] + self.missing[:place]

    def take(self) -> int | None:
        """Claim a shard that is missing; None if others make all of these.

        Raises:
            FileNotFoundError: if the folder of the shards is gone.
        """
        candidates = [index for index in self.missing if index not in self._own and index not in self._claimed]
        if not candidates and time.monotonic() - self._looked > _LOOK:
            self._look()
            candidates = [index for index in self.missing if index not in self._own]  # some may have expired
        for index in candidates:
            lease = Lease(self._file(index), exits=False)
            try:
                lease.take()
            except Busy:
                self._claimed.add(index)
                continue
            self._claimed.discard(index)
            if not self.shards[index].is_dir():
                self._own[index] = lease
                return index
            lease.release()
            self.missing.remove(index)
        return None

    def finish(self, index: int) -> None:
        """Give a shard back that is there now."""
        self._own.pop(index).release()
        self.missing.remove(index)
        self.made += 1

    def close(self) -> None:
        """Give everything back."""
        while self._own:
            self._own.popitem()[1].release()

    def others(self) -> dict[str, int]:
        """How many shards each other machine makes now, by its name."""
        self._look()
        holders = [Lease(self._file(index)).holder() for index in sorted(self._claimed)[:_ASKED]]
        found = Counter(holder.partition(" on ")[2].partition(",")[0] for holder in holders if holder)
        return dict(found.most_common())

    def _file(self, index: int) -> Path:
        return self._folder / f"{self.shards[index].name}{_SUFFIX}"

    def _look(self) -> None:
        self._looked = time.monotonic()
        if self.shards:
            there = set(os.listdir(self.shards[0].parent))
            self.missing = [
                index for index in self.missing if self.shards[index].name not in there or index in self._own
            ]
            claimed = {name.removesuffix(_SUFFIX) for name in os.listdir(self._folder) if name.endswith(_SUFFIX)}
            self._claimed = {
                index for index in self.missing if self.shards[index].name in claimed and index not in self._own
            }
