"""Where an archive ends: `tarfile` takes whatever it cannot read after the first member for the end, and says nothing."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import IO

from bellwether.trainer.data.summary import SourceSummary

_BLOCK = 512
_MARK = 2 * _BLOCK  # zero bytes, after the last member
_KEPT = 2 * tarfile.RECORDSIZE  # what tarfile may have read beyond the last member


def after(member: tarfile.TarInfo) -> int:
    """The first byte after a member and what fills its last block."""
    return member.offset_data + -(-member.size // _BLOCK) * _BLOCK


class Watched:
    """A stream that tarfile reads in order, and what it has read last."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._position, self._kept = 0, b""

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._position += len(data)
        self._kept = (self._kept + data)[-_KEPT:]
        return data

    def check_end(self, end: int, file: Path, summary: SourceSummary) -> None:
        """As `check_end`, from ``end``, the first byte after the last member."""
        if self._position < end:
            raise tarfile.ReadError(f"it ends after {self._position:,} bytes, within a member")
        check_end(self._kept[len(self._kept) - (self._position - end) :], self._stream, end, file, summary)


def check_file(file: Path, end: int, summary: SourceSummary) -> None:
    """As `check_end`, of an archive that is not compressed."""
    with file.open("rb") as stream:
        if (size := stream.seek(0, 2)) < end:
            raise tarfile.ReadError(f"it ends after {size:,} bytes, within a member")
        stream.seek(end)
        check_end(b"", stream, end, file, summary)


def check_end(first: bytes, rest: IO[bytes], end: int, file: Path, summary: SourceSummary) -> None:
    """Refuse what follows the last member, unless it is zeros; note where there are too few of them.

    Args:
        first: what has been read from byte ``end`` on, before ``rest``.

    Raises:
        tarfile.ReadError: with the byte.
    """
    first += rest.read(max(0, _MARK - len(first)))
    if first[:_BLOCK].strip(b"\0"):
        raise tarfile.ReadError(f"no valid header at byte {end:,}")
    if len(first) < _MARK:
        summary.note("tar shards without the mark of their end, which may have been cut", "read", str(file))
    data = first
    while data:
        if data.strip(b"\0"):
            raise tarfile.ReadError(f"something follows the end of the archive at byte {end:,}: are two joined by cat?")
        data = rest.read(2**20)
