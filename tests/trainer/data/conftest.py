from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bellwether.trainer.data import transient
from bellwether.trainer.data.text import TextData
from tests.trainer.labelled import save_tokenizer


@pytest.fixture(autouse=True)
def no_waiting_for_missing_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transient, "_MISSING", 1.5)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of 400 lines of made-up words; the cache is created in it."""
    folder = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    syllables = ["ba", "ko", "ri", "su", "ten", "la", "mo", "vi", "ner", "dap"]
    words = ["".join(random.choice(syllables, random.integers(1, 4))) for _ in range(300)]
    lines = [" ".join(random.choice(words, 20)) for _ in range(400)]
    (folder / "lines.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def text_config(corpus: Path) -> Callable[..., TextData]:
    def make(**keys: Any) -> TextData:
        defaults = {"source": str(corpus / "lines.txt"), "cache": str(corpus / "cache"), "vocabulary_size": 256}
        return TextData(kind="text", **{**defaults, "sequence_length": 32, **keys})

    return make


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer that knows the words of `tests.trainer.labelled`."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return folder
