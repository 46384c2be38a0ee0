"""``bellwether status``: the row about the ranks."""

from __future__ import annotations

import time
from typing import Any

import pytest

from bellwether.launcher import status

ROW = {"rank": 3, "host": "node3", "step": 1200, "doing": "waiting for data", "silent_s": 1.0}


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"unmoved_s": 3.0}, "furthest behind: rank 3 on node3 at step 1,200, waiting for data"),
        ({"unmoved_s": 47.0}, "furthest behind: rank 3 on node3 at step 1,200, waiting for data for 47 s"),
        ({"unmoved_s": 47.0, "behind": 0}, "none of 8 ranks is behind: at step 1,200, waiting for data for 47 s"),
        ({"unmoved_s": 3.0, "behind": 0}, "furthest behind: rank 3 on node3 at step 1,200, waiting for data"),
        ({"furthest_behind": [{**ROW, "silent_s": 40.0}]}, "furthest behind: rank 3 on node3 at step 1,200, waiting for data, silent for 40 s"),
        ({"furthest_behind": []}, "waiting for data"),
    ],
)  # fmt: skip
def test_rank_that_the_others_wait_for_is_shown(changes: dict[str, Any], shown: str) -> None:
    beat = {
        "time": time.time(),
        "ended": None,
        "doing": "waiting for data",
        "ranks": 8,
        "behind": 1,
        "furthest_behind": [ROW],
    }
    ((label, text),) = status._heartbeat({**beat, **changes})
    assert label == "heartbeat"
    assert text.partition(" ago, ")[2] == shown


def test_reason_of_the_end_is_shown() -> None:
    beat = {
        "time": time.time() - 90,
        "ended": "lost",
        "doing": "checkpoint",
        "reason": "rank 3 on node3 does not arrive",
    }
    ((label, text),) = status._heartbeat(beat)
    assert (label, text.partition(": ")[2]) == ("ended", "rank 3 on node3 does not arrive")
