"""USR2 and TERM: the notice that SLURM gives before it takes the nodes away.

A handler only remembers the signal. All ranks agree at a step boundary, save together and end with `SAVED`: a checkpoint
written inside a handler would be torn, and a rank that stopped alone would leave the others in a collective.
"""

from __future__ import annotations

import signal
from types import FrameType

SAVED = 75  # exit status: stopped by a signal, everything is saved, to be started again (sysexits.h: EX_TEMPFAIL)
LOST = 76  # exit status: another rank fell silent or failed, this one is well

_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
_received: list[int] = []


def listen() -> None:
    """From now on these signals are remembered instead of ending the process. Before anything that takes long."""
    for number in _SIGNALS:
        signal.signal(number, _remember)


def received() -> int:
    """The number of the first signal that came, or 0."""
    return _received[0] if _received else 0


def name(number: int) -> str:
    return signal.Signals(number).name


def _remember(number: int, _: FrameType | None) -> None:
    _received.append(number)
