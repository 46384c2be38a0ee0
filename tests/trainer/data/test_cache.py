from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import cache
from bellwether.trainer.data.cache import files_fingerprint, prepared
from tests.trainer.data.builder import build_slowly


def start(*args: object) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=build_slowly, args=args)
    process.start()
    return process


@pytest.mark.process
def test_concurrent_processes_build_an_entry_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    processes = [start(str(tmp_path), 2) for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "builds").read_text() == "built\n"
    assert capfd.readouterr().err.count("waiting for another process that prepares") == 1


@pytest.mark.process
def test_leftovers_of_a_killed_builder_are_removed(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    killed = start(str(tmp_path), 1, True)
    killed.join()
    assert killed.exitcode == -9
    assert [path.name for path in root.rglob("half")] == ["half"]
    build_slowly(str(tmp_path))
    assert len([path for path in root.iterdir() if path.is_dir()]) == 1, "the leftover is removed"


def test_failed_build_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        prepared(str(tmp_path), "thing", {}, fail)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    entry = prepared(str(tmp_path), "thing", {}, lambda folder: None)
    assert json.loads((entry / "key.json").read_text()) == {"files": {}}


def test_another_builder_may_publish_first_without_locks(tmp_path: Path) -> None:
    def overtaken(folder: Path) -> None:
        final = folder.with_name(folder.name.partition(".partial")[0])
        final.mkdir()
        (final / "by").write_text("the other")

    entry = prepared(str(tmp_path), "thing", {}, overtaken)
    assert (entry / "by").read_text() == "the other"


@pytest.mark.parametrize("damage, is_rebuilt", [
    (lambda entry: None, False),
    (lambda entry: (entry / "part" / "a.bin").write_text("od"), True),
    (lambda entry: (entry / "part" / "a.bin").write_text(""), True),
    (lambda entry: (entry / "part" / "a.bin").unlink(), True),
    (lambda entry: (entry / "key.json").unlink(), True),
    (lambda entry: (entry / "key.json").write_bytes(bytes(20)), True),
])  # fmt: skip
def test_damaged_entry_is_rebuilt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], is_rebuilt: bool
) -> None:
    builds: list[Path] = []

    def build(folder: Path) -> None:
        (folder / "part").mkdir()
        (folder / "part" / "a.bin").write_text("content")
        builds.append(folder)

    entry = prepared(str(tmp_path), "thing", {"a": 1}, build)
    damage(entry)
    assert prepared(str(tmp_path), "thing", {"a": 1}, build) == entry
    assert (entry / "part" / "a.bin").read_text() == "content"
    assert len(builds) == 1 + is_rebuilt
    assert (f"{entry} is damaged and is prepared again" in caplog.messages) == is_rebuilt
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [entry]


def test_error_names_a_directory_that_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"data.cache: .*cannot be written to"):
        prepared(str(tmp_path / "file" / "cache"), "thing", {}, lambda folder: None)


def test_small_files_are_identified_by_content(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    before = files_fingerprint([file])
    os.utime(file, (1, 1))
    assert files_fingerprint([file]) == before
    file.write_text("two")
    assert files_fingerprint([file]) != before


def test_large_files_are_identified_by_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CONTENT_LIMIT", 2)
    file = tmp_path / "a.txt"
    file.write_text("one")
    os.utime(file, (1, 1))
    before = files_fingerprint([file])
    assert files_fingerprint([file]) == before
    os.utime(file, (1, 2))
    assert files_fingerprint([file]) != before
    file.write_text("two")
    os.utime(file, (1, 1))
    assert files_fingerprint([file]) != before, "samples of the content count too"
