from __future__ import annotations

import json
from pathlib import Path

import pytest

from bellwether.cli import main


@pytest.mark.parametrize("recipe, keys, stages", [
    ("resnet-digits", ["data.crop=resized", "data.size=8"], {"read", "decode", "crop and resize", "other"}),
    ("resnet-digits", [], {"other"}),
])  # fmt: skip
def test_loader_is_measured(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recipe: str, keys: list[str], stages: set[str]
) -> None:
    config = [recipe, *keys, "data.workers=0", f"data.cache={tmp_path}"]
    assert main(["bench", "data", *config, "--seconds", "0.2", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert set(found["stages"]) == stages
    assert sum(found["stages"].values()) == pytest.approx(1, abs=0.001)
    assert min(found[key] for key in ("samples_per_second", "samples_per_core_second", "bytes_per_sample", "micro")) > 0
