"""Opens files of text: decompresses them, finds their encoding, and splits them into lines."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from bellwether.trainer.data.summary import SourceSummary

COMPRESSION = (".gz", ".bz2", ".xz", ".zst", ".zstd")
_LFS_POINTER = b"version https://git-lfs"
_HEAD = 1 << 16  # bytes by which encoding and line ends are found
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_MAGIC = {
    b"\x1f\x8b": "a gzip file", b"\x28\xb5\x2f\xfd": "a zstd file", b"PK\x03\x04": "a zip file", b"PAR1": "a parquet file",
    b"%PDF": "a PDF", b"\x89PNG": "a PNG image", b"BZh": "a bzip2 file", b"\xfd7zXZ": "an xz file",
}  # fmt: skip


class Unreadable(ValueError):
    """A file that cannot be read as its format.

    Args:
        file: the file.
        problem: what is wrong with it.
        advice: what to do.
    """

    def __init__(self, file: Path, problem: str, advice: str = "repair, convert or remove it") -> None:
        super().__init__(file, problem, advice)
        self.file, self.problem, self.advice = file, problem, advice


class NoColumn(Unreadable):
    """A file without the text column, or with another type in it."""

    def __init__(self, file: Path, problem: str, columns: Iterable[object]) -> None:
        shown = ", ".join(str(column) for column in islice(columns, 20))
        super().__init__(file, problem, f"it has: {shown or 'none'}")
        self.args = file, problem, columns


@dataclass(frozen=True)
class Options:
    """How to read files of text: the keys ``column``, ``encoding`` and ``documents`` of ``data``."""

    column: str = "text"
    encoding: str = "auto"
    documents: str = "auto"


@contextmanager
def open_bytes(file: Path) -> Iterator[IO[bytes]]:
    """The decompressed content of a file.

    Raises:
        Unreadable: if it is damaged or cut.
    """
    suffix = file.suffix.lower()
    refuse_pointer(file)
    try:
        with _open(file, suffix) as stream:
            yield stream
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise Unreadable(file, f"is no complete {suffix} file: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise Unreadable(file, f"is no complete {suffix} file: {error}") from error


def refuse_pointer(file: Path) -> None:
    """Refuse what Git LFS leaves in place of a file.

    Raises:
        Unreadable: if the file is such a pointer.
    """
    with file.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise Unreadable(file, "is a Git LFS pointer instead of the file", "run git lfs pull")


def decoded(content: bytes, stated: str) -> str:
    """The text of a member of an archive, in the encoding that is stated, or that its byte order mark says, or UTF-8.

    Raises:
        UnicodeDecodeError: if it is not in this encoding.
    """
    found = (name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark))
    return content.decode(stated if stated != "auto" else next(found, "utf-8"))


def _open(file: Path, suffix: str) -> IO[bytes]:
    if suffix in (".gz", ".tgz"):
        return cast("IO[bytes]", gzip.open(file))
    if suffix == ".bz2":
        return cast("IO[bytes]", bz2.open(file))
    if suffix == ".xz":
        return cast("IO[bytes]", lzma.open(file))
    if suffix in (".zst", ".zstd"):
        return io.BufferedReader(cast("Any", _Zstandard(file)), 1 << 20)
    return file.open("rb")


class _Zstandard(io.RawIOBase):
    """Decompresses with pyarrow, which has zstd built in."""

    def __init__(self, file: Path) -> None:
        import pyarrow

        self._file = pyarrow.OSFile(str(file))
        self._stream = pyarrow.CompressedInputStream(self._file, "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._file.close()
        super().close()


def encoding_of(file: Path, stated: str, summary: SourceSummary | None = None) -> str:
    """The encoding of a file: as stated, or by its byte order mark, or UTF-8.

    Raises:
        Unreadable: if the content is no text.
    """
    with open_bytes(file) as stream:
        head = stream.read(_HEAD)
    if stated != "auto":
        return stated
    for mark, name in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            if summary is not None and name != "utf-8-sig":
                summary.note(f"files in {name.upper()}", "converted", str(file))
            return name
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            raise Unreadable(file, f"is {what} by its content", "correct its name, or remove it")
    for zeros, name in ((head[1::2], "utf-16-le"), (head[::2], "utf-16-be")):
        if len(head) >= 4 and zeros.count(0) > 0.4 * len(zeros):
            raise Unreadable(
                file, f"looks like {name.upper()} without a byte order mark", f"write data.encoding={name}"
            )
    return "utf-8"


def text_lines(file: Path, options: Options, summary: SourceSummary) -> Iterator[tuple[int, str]]:
    """The lines of a file without their ends, with their numbers from 1. Lines end with LF or CR LF only.

    Where a file has no LF at all, CR ends a line. Lines that cannot be decoded are left out as unreadable.
    """
    encoding = encoding_of(file, options.encoding, summary)
    with open_bytes(file) as stream:
        head = stream.read(_HEAD)
    only_cr = b"\n" not in head and b"\r" in head
    if only_cr:
        summary.note("files whose lines end with CR", "CR is taken as the end of a line", str(file))
    with open_bytes(file) as stream:
        if only_cr or encoding.replace("_", "-").lower().startswith(("utf-16", "utf-32", "utf16", "utf32")):
            yield from _wide_lines(file, stream, encoding, None if only_cr else "\n")
            return
        advice = "data.encoding names the encoding of the files"
        for number, raw in enumerate(stream, 1):
            line = raw.removesuffix(b"\n").removesuffix(b"\r")
            try:
                # A byte order mark is at the start of the file only.
                yield number, line.decode(encoding if number == 1 or encoding != "utf-8-sig" else "utf-8")
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                summary.unreadable(f"{file}, line {number}: byte 0x{byte:02x} is not {error.encoding}; {advice}")


def _wide_lines(file: Path, stream: IO[bytes], encoding: str, newline: str | None) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        for number, line in enumerate(io.TextIOWrapper(stream, encoding, newline=newline), 1):
            yield number, line.removesuffix("\n").removesuffix("\r")
    except UnicodeError as error:
        raise Unreadable(file, f"is not {encoding} after line {number}: {error}") from error
