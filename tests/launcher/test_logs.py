"""The log of rank 0 of runs without SLURM, and bellwether logs. `test_interruptions` follows one over restarts."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from bellwether.launcher import attempts
from bellwether.launcher.logs import logs
from tests.launcher.processes import ROOT, command
from tests.precision import subprocess_path


def test_logs_prints_the_log_that_was_written_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, slurm, own = tmp_path / "run", tmp_path / "7-rank0.log", tmp_path / "run/logs/rank0.log"
    attempts.submitted(run, "7", str(slurm))
    own.write_text("trained here\n")
    os.utime(own, (1, 1))
    with pytest.raises(ValueError, match=r"7-rank0\.log does not exist yet"):
        logs(run, follow=False)
    for file, text, when in ((slurm, "trained by SLURM\n", 2), (own, "trained here\n", 3)):
        file.write_text(text)
        os.utime(file, (when, when))
        assert logs(run, follow=False) == 0
        assert capsys.readouterr().out == text


@pytest.mark.full
@pytest.mark.process
def test_log_of_a_run_in_a_terminal_has_lines_instead_of_the_progress_bar(space: Path) -> None:
    terminal, end = pty.openpty()
    with subprocess.Popen(
        command("bellwether", "train", "quick.yaml", "name=in-terminal"), cwd=space, stdin=end, stdout=end, stderr=end,
        env={**os.environ, "PYTHONPATH": subprocess_path(ROOT), "TERM": "xterm"}, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # raised at the end of the output of a terminal
            while data := os.read(terminal, 4096):
                shown += data
    os.close(terminal)
    assert process.returncode == 0, shown
    assert b"\r" in shown.replace(b"\r\n", b"")
    assert b"100% |" in shown
    log = (space / "runs/in-terminal/logs/rank0.log").read_text()
    assert "\r" not in log
    assert "%|" not in log.replace(" ", "")
    assert [int(step) for step in re.findall(r"^step (\d)/4 .* loss ", log, re.M)] == [1, 2, 3, 4]
    assert "step 4: held-out loss" in log
    assert "in-terminal: finished" in log
