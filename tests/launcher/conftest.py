from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a config of a run that takes a second, and one of a run that never ends."""
    folder = tmp_path_factory.mktemp("space")
    (folder / "quick.yaml").write_text(
        f"""
name: quick
duration: 4 steps
model: {{kind: cifar-resnet, depth: 8}}
data: {{kind: images, size: 8, mean: [0.3], std: [0.3], workers: 0, cache: {folder}/cache}}
batch: {{global: 16, micro: 4}}
optimizer: {{lr: 1e-2}}
log: {{every: 1 steps, trackers: [], report: false}}
evaluate: {{limit: 16}}
"""
    )
    (folder / "long.yaml").write_text(
        "extends: quick.yaml\nname: long\nduration: 100000 steps\ncheckpoint: {every: 5 steps}\n"
    )
    return folder
