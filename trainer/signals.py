"""SIGUSR2 and SIGTERM, by which SLURM announces a preemption, and the exit statuses of a run.

A signal handler only remembers the signal. All ranks agree at a step boundary, save together and exit with `SAVED`: a checkpoint
written inside a handler would be torn, and a rank that stopped alone would leave the others waiting in a collective.
"""

from __future__ import annotations

import signal
from types import FrameType

SAVED = 75  # exit status: stopped by a signal, a checkpoint is saved, start it again (EX_TEMPFAIL of sysexits.h)
LOST = 76  # exit status: another rank fell silent or failed, this one is well


class LostRank(RuntimeError):
    """One rank is at fault, and all ranks know it: the run ends with the status `LOST`. Raised by all ranks together."""


_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
_received: list[int] = []


def listen() -> None:
    """From now on remember these signals instead of ending the process. To be called before anything that takes long."""
    for number in _SIGNALS:
        signal.signal(number, _remember)


def received() -> int:
    """The number of the first signal that arrived, or 0."""
    return _received[0] if _received else 0


def name(number: int) -> str:
    """The name of a signal, such as ``SIGTERM``."""
    return signal.Signals(number).name


def _remember(number: int, _: FrameType | None) -> None:
    _received.append(number)
