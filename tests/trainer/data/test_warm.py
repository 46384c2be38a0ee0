from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bellwether.cli import main
from bellwether.launcher.launch import LaunchRequest, _warn_if_cold
from bellwether.trainer import data
from bellwether.trainer.config import ConfigError, load
from bellwether.trainer.data import cache
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
    with pytest.raises(ConfigError, match=r"text\.txt.*was changed after bellwether prepare had read it"):
        data.prepare(config)
    assert main(["prepare", "bert-tiny", *keys]) == 0
    data.prepare(config)
    file.unlink()
    with pytest.raises(ConfigError, match="is gone after bellwether prepare had read it"):
        data.prepare(config)


def test_file_that_no_command_prepared_may_change(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    config = load("bert-tiny", [f"data.source={file}", f"data.cache={tmp_path}/cache", "data.vocabulary_size=256"]).data
    found = []
    for word in ("one", "two"):
        file.write_text(f"a line about {word}\n" * 200 + "".join(f"line {n}\n" for n in range(200)))
        found.append(data.load(config.model_copy(update={"max_overlap": 1.0})).fingerprint)
    assert found[0] != found[1]
