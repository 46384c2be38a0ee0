"""Archives that were cut, damaged or joined: what tarfile silently takes for their end."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data.formats import tar
from bellwether.trainer.data.formats.opening import Options, Unreadable
from bellwether.trainer.data.image_shards import list_shards
from bellwether.trainer.data.summary import SourceSummary

COUNT = 80


def archive(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def texts() -> bytes:
    """Each member takes 1,024 bytes."""
    return archive({f"{n}.txt": f"some words of document {n}".encode() for n in range(COUNT)})


def zeroed(content: bytes, start: int, value: bytes = b"\0") -> bytes:
    return content[:start] + value * 512 + content[start + 512 :]


def read(folder: Path, content: bytes) -> tuple[int, SourceSummary]:
    file = folder / "a.tar"
    file.write_bytes(content)
    summary = SourceSummary()
    return len(list(tar.read(file, Options(), summary))), summary


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda whole: whole[:41060], "no valid header at byte 40,960"),
        (lambda whole: zeroed(whole, 40960, b"\xff"), "no valid header at byte 40,960"),
        (lambda whole: zeroed(whole, 40960), "follows the end of the archive at byte 40,960"),
        (lambda whole: whole + archive({"x.txt": b"more"}), "follows the end of the archive at byte 81,920"),
        (lambda whole: whole[:41500], "no complete tar file"),
    ],
    ids=["cut in a header", "damaged header", "zeroed header", "joined", "cut in a member"],
)
def test_archive_whose_rest_would_be_lost_is_refused(tmp_path: Path, damage: object, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        read(tmp_path, damage(texts()))  # type: ignore[operator]


def test_archive_without_the_mark_of_its_end_is_named(tmp_path: Path) -> None:
    count, summary = read(tmp_path, texts()[: 40 * 1024])
    assert count == 40
    assert any("without the mark of their end" in str(finding) for finding in summary.findings), summary
    count, summary = read(tmp_path, texts())
    assert count == COUNT
    assert not summary.findings


def test_images_of_a_cut_and_of_a_joined_archive(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "PNG")
    whole = archive({f"c/{n}.png": stream.getvalue() for n in range(4)})  # each takes 1,024 bytes
    file = tmp_path / "a.tar"
    file.write_bytes(whole[:2048])
    found = list_shards([file], "label", "data.source")
    assert found.names == ["c/0.png", "c/1.png"]
    assert any("without the mark of their end" in str(finding) for finding in found.summary.findings)
    file.write_bytes(whole + whole)
    with pytest.raises(ConfigError, match="follows the end of the archive"):
        list_shards([file], "label", "data.source")
