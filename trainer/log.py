"""Messages of a run on standard error, through `logging`: from rank 0 alone, or from the rank that they concern.

Modules log to ``logging.getLogger(__name__)``. Only rank 0 is shown, as all ranks log the same. A message that concerns one rank is
logged with ``extra=EVERY_RANK`` and is shown from any rank; from others than 0, and as a warning, it begins with rank and host. Light imports only.
"""

from __future__ import annotations

import logging
import socket
import sys

from bellwether.trainer.environment_rank import environment_rank

EVERY_RANK = {"every_rank": True}


def setup(level: int = logging.INFO) -> None:
    """Show the messages of ``bellwether`` on standard error. Does nothing where handlers are configured already."""
    logger = logging.getLogger("bellwether")
    if logger.handlers:
        return
    handler = StderrHandler()
    handler.addFilter(_show)
    handler.setFormatter(_Formatter())
    logger.addHandler(handler)
    logger.setLevel(level)


class StderrHandler(logging.Handler):
    """Writes to ``sys.stderr`` as it is at the time of the message."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


class _Formatter(logging.Formatter):
    """Information from rank 0 as it is; warnings, errors and what another rank logs as ``bellwether: MESSAGE``."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING and vars(record)["rank"] == 0:
            return text
        if getattr(record, "every_rank", False):
            return f"bellwether: rank {vars(record)['rank']} on {socket.gethostname()}: {text}"
        return f"bellwether: {text}"


def _show(record: logging.LogRecord) -> bool:
    """Add the rank to a record; return whether the record is shown."""
    rank = environment_rank()
    record.rank = rank
    return rank == 0 or getattr(record, "every_rank", False)
