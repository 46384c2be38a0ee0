"""Log records of ``bellwether`` on standard error, as ``bellwether: MESSAGE``."""

from __future__ import annotations

import logging
import sys


class _StderrHandler(logging.Handler):
    """Writes to ``sys.stderr`` as it is at the time of the message."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def setup() -> None:
    """Show messages from INFO up, each once. Does nothing where handlers are configured already."""
    logger = logging.getLogger("bellwether")
    if not logger.handlers:
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("bellwether: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
