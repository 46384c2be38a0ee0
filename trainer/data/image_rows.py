"""Encoded images by row number: of a table, of files below a folder, or of members of tar shards."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bellwether.trainer.data.image_decoding import Undecodable

# Errors of a file that stay. Others, such as EIO and ESTALE, are failures of a disk or network and say nothing of the image.
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class ImageRows(Protocol):
    """Encoded images. Picklable, and small when pickled: data workers get a copy."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> bytes:
        """The encoded image.

        Raises:
            Undecodable: if it is missing or may not be read.
            OSError: if reading it failed for another reason.
        """
        ...

    def name(self, row: int) -> str:
        """Names the image in messages; its suffix is that of the file, where it has one."""
        ...

    def reads(self, begin: int, end: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """For each of some rows in order, its file name and a function that reads it, which may be called in any thread."""
        ...


@dataclass
class TableRows:
    """The image column of a `datasets.Dataset`.

    Attributes:
        table: with the column cast to `Image(decode=False)`.
        describe: names a row in messages.
    """

    table: Any
    column: str
    describe: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.table)

    def read(self, row: int) -> bytes:
        return _content(self.table[row][self.column])

    def name(self, row: int) -> str:
        value = self.table[row][self.column]
        file = value["path"] if value is not None else None
        return f"{file} in {self.describe(row)}" if file and value["bytes"] is not None else file or self.describe(row)

    def reads(self, begin: int, end: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
        for batch in self.table.select(range(begin, end)).iter(batch_size=256):
            for value in batch[self.column]:
                yield (value and value["path"]) or "", partial(_content, value)


@dataclass
class FileRows:
    """Files below a folder, or members of tar shards below it; the listing is memory-mapped from `folder`.

    Attributes:
        folder: the listing, written by `save`.
        base: what the names in the listing are relative to.
    """

    folder: Path
    base: Path
    _names: npt.NDArray[np.uint8] = field(init=False, repr=False)
    _ends: npt.NDArray[np.int64] = field(init=False, repr=False)
    _places: npt.NDArray[np.int64] | None = field(init=False, repr=False)
    _shards: list[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._names = mapped(self.folder / "names.npy")
        self._ends = mapped(self.folder / "ends.npy")
        shards = self.folder / "shards.json"
        self._shards = json.loads(shards.read_text(encoding="utf-8")) if shards.exists() else []
        self._places = mapped(self.folder / "places.npy") if self._shards else None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "base": self.base}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def __len__(self) -> int:
        return len(self._ends)

    def _listed(self, row: int) -> str:
        start = int(self._ends[row - 1]) if row else 0
        return os.fsdecode(self._names[start : int(self._ends[row])].tobytes())

    def read(self, row: int) -> bytes:
        if self._places is None:
            return _read(self.base / self._listed(row))
        shard, offset, size = map(int, self._places[row])
        return _read(self.base / self._shards[shard], offset, size)

    def name(self, row: int) -> str:
        if self._places is None:
            return str(self.base / self._listed(row))
        return f"{self.base / self._shards[int(self._places[row, 0])]}/{self._listed(row)}"

    def reads(self, begin: int, end: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
        return ((self._listed(row), partial(self.read, row)) for row in range(begin, end))


def save(
    folder: Path, names: Sequence[str], shards: Sequence[str] = (), places: Sequence[tuple[int, int, int]] = ()
) -> None:
    """Writes the listing that `FileRows` maps.

    Args:
        names: of the files, or of the members of shards.
        shards: paths of the shards.
        places: shard number, offset and size of each member.
    """
    encoded = [os.fsencode(name) for name in names]
    np.save(folder / "names.npy", np.frombuffer(b"".join(encoded), dtype=np.uint8))
    np.save(folder / "ends.npy", np.cumsum([len(name) for name in encoded], dtype=np.int64))
    if shards:
        (folder / "shards.json").write_text(json.dumps(list(shards)), encoding="utf-8")
        np.save(folder / "places.npy", np.array(places, dtype=np.int64).reshape(-1, 3))


def mapped(file: Path) -> npt.NDArray[Any]:
    """An array on disk; small ones are read."""
    array: npt.NDArray[Any] = np.load(file, mmap_mode="r" if file.stat().st_size > 4096 else None)
    return array


def _content(value: Any) -> bytes:
    if value is None or (value["bytes"] is None and value["path"] is None):
        raise Undecodable("its row holds neither bytes nor a path")
    content: bytes | None = value["bytes"]
    return _read(Path(value["path"]), listed=False) if content is None else content


def _read(file: Path, offset: int = 0, size: int = -1, listed: bool = True) -> bytes:
    try:
        with file.open("rb", buffering=0) as stream:
            if offset:
                stream.seek(offset)
            content = stream.read(size)
            # One call reads at most 2 GiB, and over a network less.
            while size >= 0 and len(content) < size and (more := stream.read(size - len(content))):
                content += more
            return content
    except _PERMANENT as error:
        if listed and not file.parent.is_dir():  # it was there when its files were listed
            raise OSError(errno.ESTALE, "the folder is away", str(file)) from error
        problem = "it is a link that leads nowhere" if file.is_symlink() else f"it cannot be read: {error.strerror}"
        raise Undecodable(problem) from error
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise Undecodable("it is a link that leads to itself") from error
