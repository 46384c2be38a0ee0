"""Progress of a run: a bar on a terminal, lines in a log."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from bellwether.trainer import output_log

if TYPE_CHECKING:
    from tqdm import tqdm

_WINDOW = 64  # steps over which the remaining time is estimated
_BAR = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}  {text}"


class Progress:
    """Shows progress in global steps, on rank 0.

    On a terminal it is a bar; elsewhere a line for each update that has values::

        step   120/1000   12.0%  loss  5.4321  lr 1.20e-03  |g|     0.93      412 samples/s  eta 0:01:23

    The remaining time is estimated from the median of the recent times per sample, which evaluations, checkpoints and slow first steps
    after a resume do not change.

    Args:
        stream: where to write; stderr by default.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._is_terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._bar: tqdm[Any] | None = None
        self._times: deque[float] = deque(maxlen=_WINDOW)
        self._step = self._total = 0
        self._samples: Callable[[int], float] = float
        self._last = 0.0
        self._values: dict[str, Any] = {}

    def start(self, step: int, total_steps: int, samples: Callable[[int], float] = float) -> None:
        """Start at `step` completed steps (more than 0 after a resume) of `total_steps`. Later phases continue the same bar.

        Args:
            samples: after a number of steps; by default they are of equal size.
        """
        if total_steps != self._total:
            self.close()
        self._step, self._total, self._samples, self._last = step, total_steps, samples, self._clock()
        self._times.clear()
        if self._is_terminal and self._bar is None:
            self._bar = _bar(self._stream, step, total_steps)

    def update(self, step: int, values: dict[str, Any] | None = None) -> None:
        """Set the number of completed steps.

        Args:
            values: of the train event, at steps that have one.
        """
        now = self._clock()
        if step > self._step:
            self._times.append((now - self._last) / (self._samples(step) - self._samples(self._step)))
        self._step, self._last = step, now
        if values is not None:
            self._values = values
        if self._bar is not None:
            self._bar.set_postfix_str(f"eta {self._eta()}" + _in_bar(self._values), refresh=False)
            self._bar.update(step - self._bar.n)
            if values is not None:
                output_log.write(self._line())
        elif values is not None:
            self._print(self._line())

    def note(self, text: str) -> None:
        """Print a line, such as the result of an evaluation. The time since the last step does not count as step time."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            self._print(text)
        self._last = self._clock()

    def close(self) -> None:
        """Close the bar and leave it on the screen."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None

    def _eta(self) -> str:
        if not self._times:
            return "?"
        return duration((self._samples(self._total) - self._samples(self._step)) * statistics.median(self._times))

    def _line(self) -> str:
        width = len(str(self._total))
        share = 100 * self._step / self._total if self._total else 100.0
        parts = [f"step {self._step:{width}d}/{self._total}", f"{share:5.1f}%"]
        for key, form in (("loss", "loss {:7.4f}"), ("lr", "lr {:.2e}"), ("grad_norm", "|g| {:8.3g}")):
            if isinstance(self._values.get(key), int | float):
                parts.append(form.format(self._values[key]))
        if isinstance(self._values.get("samples_per_s"), int | float):
            parts.append(f"{_rate(self._values['samples_per_s']):>7} samples/s")
        return "  ".join([*parts, f"eta {self._eta()}"])

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """``1:02:03``, or ``2d 01:02:03`` from a day on.

    >>> duration(83.2), duration(176523)
    ('0:01:23', '2d 01:02:03')
    """
    minutes, s = divmod(max(0, round(seconds)), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days}d {h:02d}:{m:02d}:{s:02d}" if days else f"{h}:{m:02d}:{s:02d}"


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def _in_bar(values: dict[str, Any]) -> str:
    forms = (("loss", "loss {:.4f}"), ("lr", "lr {:.2e}"))
    parts = [form.format(values[key]) for key, form in forms if isinstance(values.get(key), int | float)]
    if isinstance(values.get("samples_per_s"), int | float):
        parts.append(f"{_rate(values['samples_per_s'])} samples/s")
    return "".join(f"  {part}" for part in parts)


def _bar(stream: TextIO, step: int, total: int) -> tqdm[Any]:
    from tqdm import tqdm

    class Bar(tqdm):
        monitor_interval = 0  # no monitor thread in a process that may fork

        @property
        def format_dict(self) -> dict[str, Any]:
            # tqdm's own estimate counts evaluations as steps and its {postfix} begins with a comma.
            return {**super().format_dict, "text": self.postfix or ""}

    # A terminal of unknown size (docker -t, script) gets a common one: tqdm would show nothing there.
    size: dict[str, Any] = {"dynamic_ncols": True} if _has_known_size(stream) else {"ncols": 80, "nrows": 20}
    return Bar(total=total, initial=step, file=stream, bar_format=_BAR, miniters=1, **size)


def _has_known_size(stream: TextIO) -> bool:
    try:
        return min(os.get_terminal_size(stream.fileno())) > 0
    except (OSError, ValueError):
        return False
