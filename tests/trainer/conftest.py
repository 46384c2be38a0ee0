from __future__ import annotations

import random
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small corpus and the cache of prepared data."""
    folder = tmp_path_factory.mktemp("workspace")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 7))) for _ in range(120)]
    lines = [" ".join(rng.choices(words, k=rng.randint(5, 40))) for _ in range(600)]
    (folder / "corpus.txt").write_text("\n".join(lines))
    return folder
