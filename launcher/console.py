"""Messages of the launching process on standard error, as ``bellwether: MESSAGE``."""

from __future__ import annotations

import logging

from bellwether.trainer.log import StderrHandler


def setup() -> None:
    """Show messages from INFO up. Does nothing where handlers are configured already."""
    logger = logging.getLogger("bellwether")
    if not logger.handlers:
        handler = StderrHandler()
        handler.setFormatter(logging.Formatter("bellwether: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
