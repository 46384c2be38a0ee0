"""Several machines that prepare one corpus in a shared cache: what each does, and that the result is that of one machine."""

from __future__ import annotations

import multiprocessing
import re
from pathlib import Path

import pytest

from tests.trainer.data.builder import read_as

PARTS = 24


def run_machines(source: Path, cache: Path, started: Path, dies_at: dict[str, int]) -> list[int | None]:
    """Processes that are machines of some names; returns their exit codes."""
    started.mkdir()
    processes = [
        multiprocessing.get_context("spawn").Process(
            target=read_as, args=(name, len(dies_at), str(source), str(cache), str(started), part)
        )
        for name, part in dies_at.items()
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(PARTS):
        lines = [f"line {line} of text {number}, which is one of many" for line in range(60)]
        (folder / f"{number:02d}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.process
def test_machines_share_the_work_and_take_over_that_of_a_killed_one(
    tmp_path: Path, texts: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    codes = run_machines(texts, tmp_path / "shared", tmp_path / "three", {"a": 3, "b": 0, "c": 0})
    assert codes == [-9, 0, 0]
    made = re.findall(rf"files: (\d+) of {PARTS} parts made here, the others on other machines", capfd.readouterr().err)
    assert len(made) == 2
    assert sum(map(int, made)) == PARTS - 2, "the killed one has finished two"
    assert min(map(int, made)) > 3
    assert run_machines(texts, tmp_path / "alone", tmp_path / "one", {"d": 0}) == [0]
    assert "other machines" not in capfd.readouterr().err
    (shared,) = (path for path in (tmp_path / "shared").iterdir() if path.is_dir())
    assert content(shared) == content(tmp_path / "alone" / shared.name)
