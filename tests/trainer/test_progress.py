"""A bar on a terminal, lines in a log, and the remaining time in both."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest

from bellwether.trainer.progress import Progress, duration


class Stream(io.StringIO):
    """A stream that is a terminal or a file."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def values(**more: Any) -> dict[str, Any]:
    return {"loss": 5.4321, "lr": 1.2e-3, "grad_norm": 0.93, "samples_per_s": 412.0, **more}


def make(terminal: bool, step: int = 0, total: int = 1000) -> tuple[Progress, Stream, Clock]:
    stream, clock = Stream(terminal), Clock()
    progress = Progress(stream, clock)
    progress.start(step, total)
    return progress, stream, clock


@pytest.fixture(autouse=True)
def _real_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


def test_log_gets_one_line_per_logged_step() -> None:
    progress, stream, clock = make(terminal=False)
    for step in range(1, 121):
        clock.now += 0.5
        progress.update(step, values() if step % 60 == 0 else None)
    progress.close()
    assert stream.getvalue().splitlines() == [
        "step   60/1000    6.0%  loss  5.4321  lr 1.20e-03  |g|     0.93      412 samples/s  eta 0:07:50",
        "step  120/1000   12.0%  loss  5.4321  lr 1.20e-03  |g|     0.93      412 samples/s  eta 0:07:20",
    ]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"loss": math.nan, "grad_norm": math.inf}, r"loss +nan .*\|g\| +inf "),
        ({"grad_norm": 123456.0}, r"\|g\| 1\.23e\+05 "),
        ({"samples_per_s": 0.123}, r" 0\.12 samples/s"),
        ({"loss": None, "grad_norm": None, "lr": None, "samples_per_s": None}, r"^step 10/20   50\.0%  eta 0:00:10$"),
    ],
)
def test_line_shows_the_values_that_exist(more: dict[str, Any], expected: str) -> None:
    progress, stream, clock = make(terminal=False, total=20)
    clock.now += 10
    progress.update(10, values(**more))
    assert re.search(expected, stream.getvalue().rstrip("\n"))


def test_lines_are_aligned() -> None:
    progress, stream, clock = make(terminal=False)
    for step, loss, norm, rate in ((1, 10.5, 123.4, 9.5), (999, 0.01, 0.0012, 123456.0)):
        clock.now += 1
        progress.update(step, values(loss=loss, grad_norm=norm, samples_per_s=rate))
    first, second = stream.getvalue().splitlines()
    assert first.index("eta") == second.index("eta")


def eta(stream: Stream) -> str:
    return re.findall(r"eta (\S+)", stream.getvalue())[-1]


@pytest.mark.parametrize("terminal", [False, True])
def test_evaluations_slow_starts_and_resumed_steps_do_not_change_the_remaining_time(terminal: bool) -> None:
    progress, stream, clock = make(terminal, step=500)
    clock.now += 300  # compiling, filling the data pipeline
    progress.update(501)
    for step in range(502, 541):
        clock.now += 1.0
        if step % 10 == 0:
            clock.now += 60  # an evaluation, within the step's interval
        progress.update(step, values())
    progress.close()
    assert eta(stream) == "0:07:40"  # 460 steps of a second


def test_time_before_a_note_does_not_count_as_step_time() -> None:
    progress, stream, clock = make(terminal=False, total=4)
    for step in (1, 2):
        clock.now += 1.0
        progress.update(step)
        clock.now += 60.0
        progress.note("held-out loss 3.0")
    clock.now += 1.0
    progress.update(3, values())
    assert eta(stream) == "0:00:01"


def test_remaining_time_follows_the_newest_steps() -> None:
    progress, stream, clock = make(terminal=False)
    for step in range(1, 301):
        clock.now += 1.0 if step <= 200 else 3.0
        progress.update(step, values() if step == 300 else None)
    assert eta(stream) == "0:35:00"


def test_notes_do_not_break_the_bar_on_a_terminal() -> None:
    progress, stream, clock = make(terminal=True)
    for step in range(1, 11):
        clock.now += 1.0
        progress.update(step, values() if step == 5 else None)
        if step == 7:
            progress.note("step 7: held-out loss 3.0")
    progress.close()
    text = stream.getvalue()
    assert "\r" in text
    assert "| 10/1000  eta 0:16:30  loss 5.4321  lr 1.20e-03  412 samples/s" in text
    # The note begins on a new line: the bar was erased or ended before it.
    assert re.search(r"(\r|\n)step 7: held-out loss 3\.0\n", text)
    assert text.endswith("\n")


def test_next_phase_continues_the_same_bar() -> None:
    progress, stream, _ = make(terminal=True, total=20)
    progress.update(10)
    progress.start(10, 20)
    progress.update(20)
    progress.close()
    assert stream.getvalue().count("\n") == 1
    assert "20/20" in stream.getvalue()


def test_remaining_time_counts_the_samples_of_a_growing_batch() -> None:
    """Steps of one sample that take a second, then of four: 10 + 40 seconds."""
    progress, stream, clock = make(terminal=False, total=20)
    progress.start(0, 20, lambda step: step + 3 * max(0, step - 10))
    for step in range(1, 6):
        clock.now += 1
        progress.update(step, values() if step == 5 else None)
    assert "eta 0:00:45" in stream.getvalue()


def test_bar_of_a_resumed_run_starts_at_its_position() -> None:
    _, stream, _ = make(terminal=True, step=500)
    assert "500/1000" in stream.getvalue()


def test_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    progress, stream, _ = make(terminal=True)
    progress.update(1, values())
    assert "\r" not in stream.getvalue()
    assert stream.getvalue().startswith("step    1/1000")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00:00"),
        (-3, "0:00:00"),
        (59.6, "0:01:00"),
        (3723, "1:02:03"),
        (86399, "23:59:59"),
        (180123, "2d 02:02:03"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
