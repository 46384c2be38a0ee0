"""The copy of rank 0's output in the run directory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bellwether.trainer import output_log
from bellwether.trainer.config import ConfigError


def lines(run: Path) -> list[str]:
    """The log's lines, without the header of each start."""
    text = (run / "logs/rank0.log").read_text()
    return [line for line in text.splitlines() if not line.startswith("--- ")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


def test_output_is_copied_in_complete_lines_and_appended(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    streams = sys.stdout, sys.stderr
    for start in ("first", "second"):
        with output_log.keep(run):
            sys.stdout.write(f"{start} ")
            print("message", file=sys.stderr)
            sys.stdout.write("line\n")
            output_log.write("only in the log")
    assert (sys.stdout, sys.stderr) == streams
    assert lines(run) == ["message", "first line", "only in the log", "message", "second line", "only in the log"]
    assert capsys.readouterr() == ("first line\nsecond line\n", "message\nmessage\n")
    output_log.write("nothing is open")
    assert "nothing is open" not in lines(run)


def test_progress_bars_are_not_copied(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # What tqdm writes: the bar, its erasure before a message, the bar again, its end.
    texts = [
        "\r 10% |#   |",
        "\r            ",
        "\r",
        "step 1: held-out loss 2.0",
        "\n",
        "\r100% |####|",
        "",
        "\n",
        "done\n",
    ]
    with output_log.keep(run):
        for text in texts:
            sys.stderr.write(text)
    assert lines(run) == ["step 1: held-out loss 2.0", "done"]
    assert capsys.readouterr().err == "".join(texts)


def test_exceptions_are_logged(run: Path) -> None:
    with pytest.raises(RuntimeError, match="on fire"), output_log.keep(run):
        raise RuntimeError("the disk is on fire")
    assert lines(run)[0] == "Traceback (most recent call last):"
    assert lines(run)[-1] == "RuntimeError: the disk is on fire"
    with pytest.raises(ConfigError), output_log.keep(run):
        raise ConfigError("batch.micro", 3, "does not divide 16")
    assert lines(run)[-1] == "bellwether: batch.micro: 3: does not divide 16"


def test_full_disk_does_not_end_the_run(run: Path) -> None:
    (run / "logs/rank0.log").symlink_to("/dev/full")
    with output_log.keep(run):
        print("trained")


def test_no_copy_where_the_launcher_keeps_the_output(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELLWETHER_KEEP_OUTPUT", "0")
    with output_log.keep(run):
        print("trained")
    assert not (run / "logs/rank0.log").exists()
