"""While a rank waits for the others to start: which ranks it waits for, and whether it reaches the store of the run at all.

Ranks may start many minutes apart, so waiting is no failure. A store that cannot be reached is one: a link is down, or a firewall drops
the packets, and torch would try again for `engine.collective_timeout`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from datetime import timedelta

from bellwether.trainer import error_file, signals, store
from bellwether.trainer.log import EVERY_RANK
from bellwether.trainer.process_info import ProcessInfo

log = logging.getLogger(__name__)

FIRST_SECONDS = 15.0  # without a message
UNREACHABLE_SECONDS = 60.0  # for which the store cannot be reached, before this rank exits
_PROBE_SECONDS = 5.0
_SHOWN = 16  # ranks in a message


def arrival(rank: int) -> str:
    """The key of the store that a rank sets when it has connected. torchrun's store outlives a restart."""
    return f"arrived/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{rank}"


def watch(process: ProcessInfo, started: threading.Event) -> None:
    """Watch the start of a rank, in a thread, until the process group is up.

    This process exits with status `signals.LOST` if it cannot reach the store.

    Args:
        started: set when the process group is up.
    """
    seconds, reached = FIRST_SECONDS, False
    message = ""
    lost: float | None = None  # since when the store cannot be reached
    while not started.wait(seconds):
        seconds = FIRST_SECONDS / 3
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        new = f"waits for all {process.size} processes at {address[0]}:{address[1]}"
        if process.rank == 0 and process.size > 1:
            new += _missing(process.size)
        if new != message:
            log.warning(new, extra=EVERY_RANK)
            message = new
        if process.rank == 0 or process.size == 1:
            continue
        error = _unreachable(address)
        # A refusal comes from a machine that can be reached, whose rank 0 has yet to start.
        if error is None or (isinstance(error, ConnectionRefusedError) and not reached):
            reached, lost = reached or error is None, None
            continue
        lost = time.monotonic() if lost is None else lost
        if time.monotonic() - lost > UNREACHABLE_SECONDS and not started.is_set():
            _exit(
                f"{address[0]}:{address[1]} cannot be reached for {time.monotonic() - lost:.0f} s ({error}): a link is down, a firewall "
                "drops packets, or BELLWETHER_INTERFACE names another network"
            )


def _unreachable(address: tuple[str, int]) -> OSError | None:
    """The error of a new connection."""
    try:
        socket.create_connection(address, _PROBE_SECONDS).close()
    except OSError as error:
        return error
    return None


def _exit(reason: str) -> None:
    log.error("exiting: %s", reason, extra=EVERY_RANK)
    error_file.write(RuntimeError(reason))
    os._exit(signals.LOST)


def _missing(size: int) -> str:
    """The ranks that have not connected to the store, as text."""
    try:
        own = store.connect(timedelta(seconds=_PROBE_SECONDS))  # that of the main thread waits
        ranks = [rank for rank in range(size) if not own.check([arrival(rank)])]
    except RuntimeError:
        return ""
    if not ranks:
        return "; all have connected"
    more = f" and {len(ranks) - _SHOWN:,} more" if len(ranks) > _SHOWN else ""
    shown = ", ".join(map(str, ranks[:_SHOWN]))
    return f"; rank{'s' if len(ranks) > 1 else ''} {shown}{more} {'have' if len(ranks) > 1 else 'has'} not connected"
