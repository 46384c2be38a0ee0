"""Two nodes of a real SLURM that prepare one corpus together."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.conftest import Space, bellwether
from tests.cluster.machine import Cluster

PARTS = 6


def content(cache: Path) -> dict[str, bytes]:
    files = (
        file for kind in ("texts", "tokens", "wordpiece") for file in cache.glob(f"{kind}-*/**/*") if file.is_file()
    )
    return {str(file.relative_to(cache)): file.read_bytes() for file in files}


@pytest.mark.full
def test_nodes_prepare_a_corpus_together(two: Cluster, space: Space) -> None:
    texts = space.folder / "texts"
    texts.mkdir()
    words = np.array([f"{first}{second}" for first in ("ba", "ko", "ri", "su") for second in ("ten", "la", "mo", "vi")])
    for number in range(PARTS):
        lines = np.random.default_rng(number).choice(words, (40_000, 25))
        (texts / f"{number}.txt").write_text("\n".join(map(" ".join, lines)) + "\n")
    keys = ["bert-tiny", f"data.source={texts}", "data.vocabulary_size=128", "data.validation_share=0.1"]
    prepare = shlex.join([sys.executable, "-m", "bellwether", "prepare", *keys, f"data.cache={space.folder}/shared"])
    job = two.submit(
        space.folder, "-N2", "--ntasks-per-node=1", "--output=prepare-%j.log", "--wrap", f"srun {prepare}", **space.environment()
    )  # fmt: skip
    two.wait_for(job, "COMPLETED")
    output = space.output(job)
    made = [int(count) for count in re.findall(rf"files: (\d) of {PARTS} parts made here, the others on other", output)]
    assert len(made) == 2, output
    assert sum(made) == PARTS
    assert re.search(r"tokens: \d of \d+ parts made here, the others on other", output), output
    alone = bellwether(two, space, "prepare", *keys, f"data.cache={space.folder}/alone")
    assert alone.returncode == 0, alone.stderr
    assert "other machines" not in alone.stderr
    shared = content(space.folder / "shared")
    assert {name.partition("-")[0] for name in shared} == {"texts", "tokens", "wordpiece"}
    assert shared == content(space.folder / "alone")
