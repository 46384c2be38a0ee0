"""From the beats of all ranks: whether the run hangs, and which rank the others wait for."""

from __future__ import annotations

from typing import Any

import pytest

from bellwether.trainer import arrival
from bellwether.trainer.arrival import ActivityLog, HangDetector, Limits, behind, describe


def beats(*places: tuple[int, int, str]) -> dict[int, dict[str, Any]]:
    return {
        rank: {"step": 7, "entered": entered, "begun": begun, "doing": doing, "host": f"node{rank}"}
        for rank, (entered, begun, doing) in enumerate(places)
    }


DATA, UPDATE, SAVE = arrival.DATA, arrival.UPDATE, arrival.CHECKPOINT


@pytest.mark.parametrize(
    ("places", "lowest", "words"),
    [
        ([(5, 1, UPDATE), (4, 0, DATA), (5, 1, UPDATE)], [1], "rank 1 on node1 does not arrive: waiting for data after step 7 for 40 s; 2 other ranks wait in forward"),
        ([(5, 3, UPDATE), (5, 0, UPDATE)], [1], "1 other rank waits in collective 3 of it, where it has begun 0"),
        ([(9, 2, SAVE), (9, 2, SAVE), (9, 1, SAVE)], [2], "rank 2 on node2 does not arrive: checkpoint"),
        ([(5, 0, DATA), (6, 2, UPDATE), (5, 0, DATA)], [0, 2], "rank 0 on node0 does not arrive: waiting for data after step 7 for 40 s; rank 2"),
        ([(6, 2, UPDATE), (6, 2, UPDATE)], [], "no rank is behind: all 2 ranks"),
        ([(6, 2, UPDATE)], [0], "rank 0 on node0 does not arrive"),
        ([(4, 0, DATA)] * 6 + [(5, 1, UPDATE)], [0, 1, 2, 3, 4, 5], "and 2 more ranks; 1 other rank waits"),
    ],
)  # fmt: skip
def test_ranks_at_the_lowest_place_are_named(places: list[tuple[int, int, str]], lowest: list[int], words: str) -> None:
    assert behind(beats(*places)) == lowest
    assert words in describe(beats(*places), 40.0, {})


def test_where_no_rank_is_behind_the_few_whose_code_is_elsewhere_are_shown() -> None:
    places = beats(*[(6, 2, UPDATE)] * 4)
    frames = {0: "engine.py:1 in step", 1: "user.py:5 in read", 2: "engine.py:1 in step", 3: "engine.py:1 in step"}
    assert "Most are at engine.py:1 in step, but rank 1 on node1 at user.py:5 in read" in describe(places, 40.0, frames)
    assert "Most" not in describe(places, 40.0, {0: "a", 1: "b"})


@pytest.mark.parametrize(
    ("activity", "durations", "limit"),
    [
        (UPDATE, [], None),
        (UPDATE, [0.1, 0.1, 0.1], 30),
        (UPDATE, [20, 20, 20], 100),
        (UPDATE, [1, 1, 1, 40], 80),  # now and then much longer
        (DATA, [0.01], 120),
        (arrival.EVALUATION_DATA, [0.01], 120),
        (SAVE, [20], 600),
        (arrival.WRITING, [0.01], 600),
        (arrival.REPLICAS, [0.01], 30),
        (SAVE, [200, 200], 1000),
    ],
)
def test_limit_follows_earlier_durations_of_the_activity(
    activity: str, durations: list[float], limit: float | None
) -> None:
    assert Limits().of(activity, durations) == limit
    assert Limits(factor=0).of(activity, durations) is None


def test_hang_is_no_progress_of_the_rank_furthest_behind() -> None:
    detector = HangDetector(lambda activity: 30.0)
    assert detector.look(beats((5, 1, UPDATE), (4, 0, DATA)), 0.0) is None
    assert detector.look(beats((9, 1, UPDATE), (4, 0, DATA)), 30.0) is None
    hang = detector.look(beats((9, 1, UPDATE), (4, 0, DATA)), 31.0)
    assert hang is not None
    assert (hang.place, hang.seconds) == ((4, 0), 31.0)
    assert detector.look(beats((9, 1, UPDATE), (4, 1, DATA)), 32.0) is None  # one more collective is progress
    assert detector.look(beats((9, 1, UPDATE), (4, 1, DATA)), 62.0) is None
    detector.forget()  # the process itself was suspended
    assert detector.look(beats((9, 1, UPDATE), (4, 1, DATA)), 600.0) is None


def test_first_steps_of_a_phase_are_no_history(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr(arrival.time, "monotonic", lambda: next(clock))
    log = ActivityLog()
    for phase in range(2):
        log.enter(10 * phase, arrival.START_OF_PHASE)
        for step in range(10 * phase, 10 * phase + 5):
            log.enter(step, DATA)
            log.enter(step, UPDATE)
        log.enter(10 * phase + 5, SAVE)
        log.enter(10 * phase + 5, arrival.METRICS)
        assert log.durations(UPDATE) == [1.0, 1.0]
        assert log.durations(SAVE) == [1.0] * (phase + 1)
    assert log.beat()["entered"] == 26
    assert log.durations(arrival.START) == []
