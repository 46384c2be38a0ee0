"""The signals that stop a run, and the exit statuses of one.

SLURM announces a preemption by SIGUSR2 or SIGTERM. A handler only remembers the signal. All ranks agree at a step boundary, save
together and exit with `SAVED`: a checkpoint written inside a handler would be torn, and a rank that stopped alone would leave the
others waiting in a collective. Before the first step there is nothing to save, and the process exits at once, also while it waits in
C++ code for ranks that never come, where Python's handlers do not run.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from bellwether.trainer.log import EVERY_RANK

log = logging.getLogger(__name__)

SAVED = 75  # exit status: stopped by a signal, a checkpoint is saved, start it again (EX_TEMPFAIL of sysexits.h)
IO = 74  # exit status: data could not be read, also after data.retry; start it again later (EX_IOERR of sysexits.h)
LOST = 76  # exit status: another rank fell silent or failed, this one is well
READ_FAILED = errno.EREMOTEIO  # number of an OSError: of data, after the tries of data.retry
INTERRUPTED = 130  # exit status: Ctrl-C

_INTERRUPT_SECONDS = 10.0  # for the main thread to end after Ctrl-C


class LostRank(RuntimeError):
    """One rank is at fault, and all ranks know it: the run ends with the status `LOST`. Raised by all ranks together."""


_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
_received: list[int] = []
_has_stepped = threading.Event()
_before_exit: list[Callable[[int], None]] = []


def listen() -> None:
    """From now on remember these signals, or exit before the first step. To be called before anything that takes long."""
    for number in _SIGNALS:
        signal.signal(number, _remember)
    # C code writes each signal's number into this pipe at once, whatever the main thread is doing.
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True).start()


def stepped() -> None:
    """To be called after a training step: from now on there is something to save."""
    _has_stepped.set()


def before_exit(act: Callable[[int], None]) -> None:
    """Call a function with the exit status when a signal ends this process before its first step."""
    _before_exit.append(act)


def received() -> int:
    """The number of the first signal that arrived, or 0."""
    return _received[0] if _received else 0


def name(number: int) -> str:
    """The name of a signal, such as ``SIGTERM``."""
    return signal.Signals(number).name


def _remember(number: int, _: FrameType | None) -> None:
    _received.append(number)


def _watch(pipe: int) -> None:
    while True:
        for number in os.read(pipe, 64):
            if number not in (*_SIGNALS, signal.SIGINT):
                continue
            status = INTERRUPTED if number == signal.SIGINT else SAVED
            if not _has_stepped.is_set():
                log.warning("stopped by %s before the first step", name(number), extra=EVERY_RANK)
                for act in _before_exit:
                    with contextlib.suppress(Exception):
                        act(status)
                os._exit(status)
            if number == signal.SIGINT:
                # KeyboardInterrupt does not reach a main thread that waits in a collective.
                timer = threading.Timer(_INTERRUPT_SECONDS, os._exit, [status])
                timer.daemon = True
                timer.start()
