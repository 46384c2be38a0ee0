"""The figures of docs/optimizers.md: the script that draws them runs, and the page shows all of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/optimizers.md"


@pytest.mark.full
@pytest.mark.process
def test_script_draws_every_figure(tmp_path: Path) -> None:
    arguments = [sys.executable, str(ROOT / "scripts/draw_optimizers.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(
        arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = {file.name for file in tmp_path.iterdir()}
    assert figures == {file.name for file in (ROOT / "docs/pictures").glob("optimizers-*.png")}
    for name in figures:
        with Image.open(tmp_path / name) as picture:
            assert picture.width >= 700
            assert len(picture.getcolors()) > 8  # not blank


def test_page_links_exist_and_show_every_figure() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text())
    local = [target for target in targets if not target.startswith("http")]
    assert len(local) >= 10
    for target in local:
        assert (PAGE.parent / target).is_file(), target
    shown = {Path(target).name for target in local if target.startswith("pictures/")}
    assert shown == {file.name for file in (ROOT / "docs/pictures").glob("optimizers-*.png")}
