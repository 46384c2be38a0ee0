from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bellwether.cli import main
from bellwether.launcher.launch import LaunchRequest, _warn_if_cold
from bellwether.trainer.config import load
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
    from bellwether.trainer import data

    data.load(text_config(cache=str(tmp_path)))
    assert is_warm(text_config(cache=str(tmp_path), sequence_length=64, workers=0, retry=3))
    assert not is_warm(text_config(cache=str(tmp_path), lowercase=False))
