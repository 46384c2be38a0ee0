from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from bellwether.cli import main
from bellwether.launcher.launch import LaunchRequest, _warn_if_cold
from bellwether.trainer import data
from bellwether.trainer.config import ConfigError, load
from bellwether.trainer.data import cache, contents
from bellwether.trainer.data.text import TextData
from bellwether.trainer.data.warm import is_warm


def test_prepared_data_are_known_as_such(
    corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    keys = [f"data.source={corpus}/lines.txt", f"data.cache={tmp_path}/cache", "data.vocabulary_size=256"]

    def warn(on: str = "slurm") -> str:
        caplog.clear()
        _warn_if_cold(LaunchRequest("bert-tiny", keys, on=on), load("bert-tiny", keys))
        return caplog.text

    assert f"lines.txt are not prepared in {tmp_path}/cache" in warn()
    assert "bellwether prepare bert-tiny data.source=" in warn()
    assert not warn("local")
    assert main(["prepare", "bert-tiny", *keys]) == 0
    assert "400 documents" in capfd.readouterr().out
    assert not warn()
    shutil.rmtree(next((tmp_path / "cache").glob("tokens-*/")))
    assert warn()


def test_keys_that_prepare_nothing_do_not_matter(text_config: Callable[..., TextData], tmp_path: Path) -> None:
    data.load(text_config(cache=str(tmp_path)))
    assert is_warm(text_config(cache=str(tmp_path), sequence_length=64, workers=0, retry=3))
    assert not is_warm(text_config(cache=str(tmp_path), lowercase=False))


def _replace(file: Path, old: bytes, new: bytes, keep_time: bool) -> None:
    before = file.stat()
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, 1))
    if keep_time:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("limit", [2**28, 10], ids=["by-content", "by-listing"])
def test_file_that_was_changed_after_prepare_is_named(
    tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A small corpus is identified by its content, a large one by size, time and samples of its files."""
    monkeypatch.setattr(cache, "CONTENT_LIMIT", limit)
    file = tmp_path / "text.txt"
    # Longer than what is sampled of it.
    file.write_text("".join(f"line {number} of some text about nothing\n" for number in range(9000)))
    keys = [f"data.source={file}", f"data.cache={tmp_path}/cache", "data.vocabulary_size=256"]
    config = load("bert-tiny", keys).data
    assert main(["prepare", "bert-tiny", *keys]) == 0
    data.prepare(config)

    os.utime(file)  # the same content
    if limit > 10:
        data.prepare(config)
    assert main(["prepare", "bert-tiny", *keys]) == 0

    _replace(file, b"line 5000", b"line 5OO0", keep_time=True)
    capfd.readouterr()
    assert main(["prepare", "bert-tiny", *keys]) == 2
    assert (
        f"{file}': its content has changed since it was prepared, but neither its size nor its time"
        in capfd.readouterr().err
    )

    os.utime(file)
    with pytest.raises(
        ConfigError, match=r"since bellwether prepare has read them .*, 1 was changed \(.*text\.txt\); restore"
    ):
        data.prepare(config)
    assert main(["prepare", "bert-tiny", *keys]) == 0
    data.prepare(config)
    file.unlink()
    with pytest.raises(ConfigError, match=r"1 is gone \(.*text\.txt\)"):
        data.prepare(config)


def test_file_that_no_command_prepared_may_change(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    config = load("bert-tiny", [f"data.source={file}", f"data.cache={tmp_path}/cache", "data.vocabulary_size=256"]).data
    found = []
    for word in ("one", "two"):
        file.write_text(f"a line about {word}\n" * 200 + "".join(f"line {n}\n" for n in range(200)))
        found.append(data.load(config.model_copy(update={"max_overlap": 1.0})).fingerprint)
    assert found[0] != found[1]


def test_files_that_were_added_after_prepare_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "abcd":
        (folder / f"{name}.txt").write_text("".join(f"line {n} of {name}\n" for n in range(100)))
    (tmp_path / "held.txt").write_text("".join(f"of line {n}\n" for n in range(100)))
    keys = [f"data.source={folder}", f"data.validation={tmp_path}/held.txt", f"data.cache={tmp_path}/cache"]
    keys += ["data.vocabulary_size=256"]
    config = load("bert-tiny", keys).data
    assert main(["prepare", "bert-tiny", *keys]) == 0
    data.prepare(config)
    entries = set((tmp_path / "cache").glob("*-*/"))

    (folder / "notes.md").write_text("not read")
    data.prepare(config)
    (folder / "new.txt").write_text("a new line\n")
    with pytest.raises(
        ConfigError, match=r"1 was added \(.*/new\.txt\); restore them, or call bellwether prepare again"
    ):
        data.prepare(config)
    (folder / "a.txt").unlink()
    (folder / "b.txt").write_text("other\n")
    (folder / "c.txt").write_text("other\n")
    with pytest.raises(
        ConfigError, match=r"2 were changed \(.*b\.txt, .*c\.txt\); 1 is gone \(.*a\.txt\); 1 was added \("
    ):
        data.prepare(config)
    assert set((tmp_path / "cache").glob("*-*/")) == entries, "nothing was prepared for a run that is refused"
    assert main(["prepare", "bert-tiny", *keys]) == 0
    data.prepare(config)


def test_folders_of_many_files_are_compared_by_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_MOST", 8)
    folder = tmp_path / "images"
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for index in range(6):
            Image.new("RGB", (8, 8), (50 * index, 200 * number, 0)).save(folder / name / f"{index}.png")
    (folder / "cat" / "gone.png").symlink_to("nowhere")
    monkeypatch.chdir(folder)
    keys = ["data.source=.", f"data.cache={tmp_path}/cache", "data.validation=null", "data.on_error=skip"]
    config = load("resnet20-cifar10", keys).data
    assert main(["prepare", "resnet20-cifar10", *keys]) == 0
    data.prepare(config)
    Image.new("RGB", (8, 8)).save(folder / "dog" / "new.png")
    with pytest.raises(ConfigError, match=r"1 was changed \(.*/images/dog, which had 6 files\); restore"):
        data.prepare(config)
    assert main(["prepare", "resnet20-cifar10", *keys]) == 0
    data.prepare(config)
