"""Messages of a run: which ranks are shown, and where the rank is named."""

from __future__ import annotations

import logging

import pytest

from bellwether.trainer import log

TABLE = {
    # rank, level, whether it is logged with EVERY_RANK: the output
    ("0", logging.INFO, False): "text\n",
    ("0", logging.INFO, True): "text\n",
    ("0", logging.WARNING, False): "bellwether: text\n",
    ("0", logging.WARNING, True): "bellwether: rank 0 on HOST: text\n",
    ("3", logging.INFO, False): "",
    ("3", logging.INFO, True): "bellwether: rank 3 on HOST: text\n",
    ("3", logging.WARNING, False): "",
    ("3", logging.WARNING, True): "bellwether: rank 3 on HOST: text\n",
}


@pytest.mark.parametrize("rank, level, every_rank", TABLE)
def test_other_ranks_than_0_are_shown_only_with_every_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, level: int, every_rank: bool
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("socket.gethostname", lambda: "HOST")
    logger = logging.getLogger("bellwether")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    log.setup()
    logging.getLogger("bellwether.trainer.thing").log(level, "text", extra=log.EVERY_RANK if every_rank else None)
    assert capsys.readouterr().err == TABLE[rank, level, every_rank]
