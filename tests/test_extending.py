"""docs/extending.md: with the files and edits of the page, a copy of the repository runs its commands as printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/extending.md"
CODE = ("bellwether", "experiments", "launcher", "trainer", "optimizers", "configs", "slurm")


def blocks(*languages: str) -> list[tuple[str, str]]:
    """(path, content) of the page's code blocks in these languages. The first line of a block names its file."""
    found = re.findall(r"^```(\w+)\n# (\S+)\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    return [(path, content) for language, path, content in found if language in languages]


def edit(file: Path, diff: str) -> None:
    """Replace the lines that begin with - by those that begin with +; without the former, append the latter."""
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line.startswith("-"))
    after = "".join(line[1:] for line in lines if line.startswith("+"))
    text = file.read_text()
    assert text.count(before) == 1 or not before, f"{file}: {before}"
    file.write_text(text.replace(before, after) if before else text + after)


def test_each_example_has_under_30_lines() -> None:
    files = blocks("python")
    assert [path.split("/")[0] for path, _ in files] == ["optimizers", "trainer", "trainer"]
    for path, content in files:
        registrations = [diff for edited, diff in blocks("diff") if edited.split("/")[:-1] == path.split("/")[:-1]]
        lines = [line for line in (content + "".join(registrations)).splitlines() if line.strip()]
        assert len(lines) < 30, path


@pytest.mark.process
def test_page_runs_as_printed(tmp_path: Path) -> None:
    for name in CODE:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignored)
    for path, content in blocks("python", "yaml"):
        assert not (tmp_path / path).exists(), path
        (tmp_path / path).write_text(content)
    for path, diff in blocks("diff"):
        edit(tmp_path / path, diff)
    commands = re.findall(r"^bellwether .*$", PAGE.read_text(), re.M)
    assert commands
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for command in commands:
        words = [sys.executable, "-m", *shlex.split(command), f"data.cache={tmp_path / 'cache'}"]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in (tmp_path / "runs/bars/metrics.jsonl").read_text().splitlines()]
    assert "signum" in json.dumps([event for event in events if event["event"] == "plan"])
    assert [event["accuracy"] for event in events if event["event"] == "eval"][-1] > 0.9
