"""scripts/measure_start.py: the CPU time and the file-system calls of a rank's start."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from scripts import measure_start

SUMMARY = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 61.77    0.104391           6     15104      8220 newfstatat
 20.02    0.033841           5      5920       331 openat
  9.10    0.015379           2      6404           read
  0.01    0.000017           8         2           pread64
  1.21    0.002045           3       512           getdents64
  0.11    0.000186           9        20        12 readlink
------ ----------- ----------- --------- --------- ----------------
100.00    0.168988           5     27962      8563 total
"""


def test_calls_are_counted_by_what_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(folder: Path, *prefix: str) -> None:
        if prefix:
            Path(prefix[prefix.index("-o") + 1]).write_text(SUMMARY)

    monkeypatch.setattr(measure_start, "_run", run)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert measure_start.main() == 0
    counts = [line.split("  ")[0] + line.rsplit(" ", 1)[1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert counts == [
        "look up a path15,124", "open a file5,920", "read6,406", "list a folder512", "all27,962",
    ]  # fmt: skip


@pytest.mark.full
@pytest.mark.process
def test_start_of_a_rank_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A real run; without strace, so that it is measured where that is not installed too."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(measure_start, "REPEATS", 1)
    assert measure_start.main() == 1
    time, no_strace = capsys.readouterr().out.splitlines()
    found = re.fullmatch(r"CPU time of a run of two steps: ([\d.]+) s \(range ([\d.]+) to \2\)", time)
    assert found
    assert 0.5 < float(found[1]) < 300
    assert no_strace == "no strace here: file-system calls are not counted"
